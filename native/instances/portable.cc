// The instance for every processor that the compiler's own defaults target. CMakeLists.txt sets the flags.
#include "../tiles/portable.h"
#include "table.h"

namespace earthshine {

const Instance portable = table<PortableTile>("portable");

}  // namespace earthshine
