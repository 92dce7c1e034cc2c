// The nearest rotation and its gradient for vector lanes, which every operator on the CPU calls.
#define MGRPO_POLAR_DEFINED_HERE
#define MGRPO_ISA_BODY "polar_lanes.h"
#include "for_each_isa.h"
