// The instance for x86-64 with AMX tiles of bf16. CMakeLists.txt sets the flags.
#include "../tiles/amx.h"
#include "table.h"

namespace earthshine {

const Instance amx = table<AmxTile, Avx512Tile>("amx");

}  // namespace earthshine
