// Runs the decode kernels' own schedule (common/schedule.h) on the host, for a test to check.
// In, a case a line:  tile_rows tiles_per_group workers min_blocks tile_overhead split_by_tile first_lead block_ps h_q s_q b, b lengths, then b + 1
//                     query starts or nothing.
// Out, a segment a line:  case group_worker seq group lo hi whole index parts closing unmasked splits first_worker entry  (the last three are -1
//                         but for a first part)
//      and, a worker that has work a line:  pace case nanoseconds
#include "block.h"  // first: see there

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "../common/schedule.h"

using namespace flashmla;

int main() {
  std::string line;
  for (int number = 0; std::getline(std::cin, line); ++number) {
    std::istringstream in(line);
    MlaDecodeParams p = {};
    in >> p.tile_rows >> p.tiles_per_group >> p.workers >> p.min_blocks >> p.tile_overhead >> p.split_by_tile >> p.first_lead >> p.block_ps >> p.h_q >> p.s_q >> p.batch;
    std::vector<int> lengths(p.batch), starts;
    for (int& length : lengths) in >> length;
    for (int start; in >> start;) starts.push_back(start);
    p.seq_lens = lengths.data();
    p.query_start = starts.empty() ? nullptr : starts.data();
    const int group_workers = p.group_workers = p.workers / p.tiles_per_group, group_rows = p.tile_rows * p.tiles_per_group;
    p.groups = (p.s_q * p.h_q + group_rows - 1) / group_rows;
    block::launch({1, 1, 1}, 32, [&] {
      const int lane = lane_of_warp();
      const Shapes shapes(p, p.tile_rows);
      for (int worker = 0; worker < group_workers; ++worker) {
        const LinePosition at = locate(p, shapes, worker);
        if (starts.empty() && p.batch <= kKnownLengths) {
          int known[kKnownOfLane];
          for (int i = 0; i < kKnownOfLane; ++i) known[i] = lane * kKnownOfLane + i < p.batch ? lengths[lane * kKnownOfLane + i] : 0;
          const LinePosition same = locate(p, known, worker);
          if (std::memcmp(&same, &at, sizeof at) != 0) std::printf("%d differs by known lengths\n", number);
        }
        SegmentWalk walk(at, worker);
        Segment seg;
        for (bool first = true; walk.next(at, shapes, seg); first = false) {
          if (lane != 0) continue;
          if (first) std::printf("pace %d %u\n", number, pace_interval(p, at, p.tile_rows));
          const MlaSplit split = seg.lo == 0 ? describe_split(p, at, seg, worker) : MlaSplit{0, 0, -1, -1, {}};
          const int entry = seg.lo == 0 ? split_index(p, seg, worker) : -1;
          const PartPlace place = place_of(at, seg, worker);
          std::printf("%d %d %d %d %d %d %d %d %d %d %d %d %d %d\n", number, worker, seg.seq, seg.group, seg.lo, seg.hi, seg.whole(), place.index,
                      place.parts, closing_parts(place.parts, at.overhead), unmasked_blocks(seg), split.splits, split.first_worker, entry);
        }
      }
    });
  }
}
