// The instance for x86-64 with AVX2 and FMA. CMakeLists.txt sets the flags.
#include "../tiles/avx2.h"
#include "table.h"

namespace earthshine {

const Instance avx2 = table<Avx2Tile>("avx2");

}  // namespace earthshine
