// Runs in which order a worker takes the KV blocks of a segment (common/order.h) on the host, for a test to check.
// In, a case a line:  blocks most_fetched alternates
// Out, a case a line:  mixed, then the blocks in their order, and two places after them
#include "block.h"  // first: see there

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "../common/order.h"

using namespace flashmla;

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    int blocks = 0, most_fetched = 0, alternates = 0;
    in >> blocks >> most_fetched >> alternates;
    const BlockOrder order(blocks, most_fetched, alternates != 0);
    std::printf("%d", order.mixed());
    for (int n = 0; n < blocks + 2; ++n) std::printf(" %d", order(n));
    std::printf("\n");
  }
}
