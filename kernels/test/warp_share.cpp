// Runs how rows that are merged are shared out over blocks and warps (sm90/decode/warp_share.h) on the host, for a test to check.
// In, a case a line:  parts owners rows
// Out, a warp a line:  case owner begin end sub step first rows parts lanes
#include "block.h"  // first: see there

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

#include "../sm90/decode/warp_share.h"

using namespace flashmla::decode;

int main() {
  std::string line;
  for (int number = 0; std::getline(std::cin, line); ++number) {
    std::istringstream in(line);
    int parts, owners, rows;
    in >> parts >> owners >> rows;
    for (int owner = 0; owner < owners; ++owner) {
      const int begin = first_row_of(owner, rows, owners), end = first_row_of(owner + 1, rows, owners);
      if (begin == end) continue;
      for (int warp = 0; warp < 8; ++warp) {
        const WarpShare share(parts, begin, end, warp);
        std::printf("%d %d %d %d %d %d %d %d %d %d\n", number, owner, begin, end, share.sub, share.step, share.first, share.rows, share.parts,
                    share.lanes);
      }
    }
  }
}
