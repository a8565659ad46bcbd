#include "simd.h"

// e^x in double: x = n ln 2 + r, Taylor to degree 13 on |r| ≤ ln 2 / 2.
double expDouble(double x) {
  if (x != x) return x;
  if (x < -708) return 0;
  if (x > 709) return __builtin_inf();
  double n = __builtin_rint(x * 1.4426950408889634);
  double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1;
  for (int k = 13; k >= 1; k--) p = 1 + p * r / k;
  return p * __builtin_bit_cast(double, (u64)((i32)n + 1023) << 52);
}

// ln x in double for normal x > 0: x = m · 2^e with m in [√½, √2), then 2 artanh((m − 1) / (m + 1)).
double logDouble(double x) {
  if (!(x > 0)) return x == 0 ? -__builtin_inf() : __builtin_nan("");
  u64 bits = __builtin_bit_cast(u64, x);
  i32 e = (i32)(bits >> 52) - 1023;
  double m = __builtin_bit_cast(double, (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    e++;
  }
  double z = (m - 1) / (m + 1), q = z * z, s = 0;
  for (int k = 21; k >= 1; k -= 2) s = s * q + 1.0 / k;
  return 2 * z * s + e * 0.6931471805599453;
}
