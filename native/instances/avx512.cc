// The instance for x86-64 with AVX-512 F, BW, DQ and VL. CMakeLists.txt sets the flags.
#include "../tiles/avx512.h"
#include "table.h"

namespace earthshine {

const Instance avx512 = table<Avx512Tile>("avx512");

}  // namespace earthshine
