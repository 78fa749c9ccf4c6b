// The instance for x86-64 with AVX-512 and AVX512_BF16. CMakeLists.txt sets the flags.
#include "../tiles/avx512_bf16.h"
#include "table.h"

namespace earthshine {

const Instance avx512_bf16 = table<Avx512Bf16Tile, Avx512Tile>("avx512_bf16");

}  // namespace earthshine
