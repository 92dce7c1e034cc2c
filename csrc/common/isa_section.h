// What one section of for_each_isa.h consists of.
#include "scalar.h"
#include "pack.h"
#include "stores.h"
#include "mat3.h"
#include "polar.h"
#include MGRPO_ISA_BODY
#undef MGRPO_POLAR_FUNCTIONS
