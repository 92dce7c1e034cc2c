// The copies that polar.h promises, compiled once per instruction set (for_each_isa.h); doubles have one version.
namespace MGRPO_NAMESPACE {

MGRPO_POLAR_FUNCTIONS(, float)
#if MGRPO_ISA_BYTES == 16
MGRPO_POLAR_FUNCTIONS(, double)
#endif

}  // namespace MGRPO_NAMESPACE
