"""How a computation is carried out: device, processes, precision, memory, compiler, random numbers."""
