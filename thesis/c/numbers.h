/* ---- Numbers: plain loops and polynomials, for compilers to vectorise ---- */

/* Sums in eight lanes, so that no addition waits for the one before. */
static inline float ddsp_sum(const float *x, int n)
{
    float lane[8] = {0.0f};
    int i;
    for (i = 0; i + 8 <= n; i += 8) {
        DDSP_LANES
        for (int j = 0; j < 8; j++)
            lane[j] += x[i + j];
    }
    for (int j = 0; i + j < n; j++)
        lane[j] += x[i + j];
    return (lane[0] + lane[4]) + (lane[1] + lane[5]) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static inline float ddsp_sum_of_squares(const float *x, int n)
{
    float lane[8] = {0.0f};
    int i;
    for (i = 0; i + 8 <= n; i += 8) {
        DDSP_LANES
        for (int j = 0; j < 8; j++)
            lane[j] += x[i + j] * x[i + j];
    }
    for (int j = 0; i + j < n; j++)
        lane[j] += x[i + j] * x[i + j];
    return (lane[0] + lane[4]) + (lane[1] + lane[5]) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Between -limit and limit, also what is no number. Of one comparison: with two, gcc takes it for
   control flow and does not vectorise. */
static inline float ddsp_clamp(float x, float limit)
{
    const float size = fabsf(x);
    return copysignf(size < limit ? size : limit, x);
}

/* 2^x for -126 <= x <= 126: Taylor's series about the nearest integer. */
static inline float ddsp_exp2(float x)
{
    const int32_t n = (int32_t)(x + 127.5f) - 127;
    const float t = (x - (float)n) * 0.693147181f;
    const float series =
        1.0f + t * (1.0f + t * (1.0f / 2 + t * (1.0f / 6 + t * (1.0f / 24 + t * (1.0f / 120
        + t * (1.0f / 720 + t * (1.0f / 5040)))))));
    const uint32_t bits = (uint32_t)(n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * series;
}

/* log2(x) for x >= 1: the exponent, and the series of the inverse hyperbolic tangent for a
   mantissa between sqrt(1/2) and sqrt(2). */
static inline float ddsp_log2(float x)
{
    uint32_t bits, above;
    float mantissa, t, square;
    memcpy(&bits, &x, sizeof bits);
    above = bits - 0x3f3504f3u; /* the bits of sqrt(1/2) */
    bits -= above & 0xff800000u;
    memcpy(&mantissa, &bits, sizeof mantissa);
    t = (mantissa - 1.0f) / (mantissa + 1.0f);
    square = t * t;
    t *= 2.88539008f * (1.0f + square * (1.0f / 3 + square * (1.0f / 5 + square * (1.0f / 7))));
    return (float)(int32_t)(above >> 23) + t;
}

static inline float ddsp_sigmoid(float x)
{
    return 1.0f / (1.0f + ddsp_exp2(-1.44269504f * ddsp_clamp(x, 60.0f)));
}

/* 2 * sigmoid(x) ** ln(10) + 1e-7: how raw outputs become amplitudes (Engel et al. 2020). */
static inline float ddsp_exp_sigmoid(float x)
{
    const float inverse = 1.0f + ddsp_exp2(-1.44269504f * ddsp_clamp(x, 37.0f));
    return 2.0f * ddsp_exp2(-2.30258509f * ddsp_log2(inverse)) + 1e-7f;
}

/* sin(2 pi phase / 2^32): least squares at Chebyshev nodes, within 2e-7. */
static inline float ddsp_sine(uint32_t phase)
{
    const float x = (float)(int32_t)phase * 2.32830644e-10f;
    const float square = x * x;
    return x * @SINE@;
}

/* 'lowbias32', Wellons' low-bias xorshift-multiply hash. */
static inline uint32_t ddsp_hash(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* The hash as a number in [-1, 1). */
static inline float ddsp_uniform(uint32_t x)
{
    return (float)(int32_t)(ddsp_hash(x) >> 8) * 1.1920929e-7f - 1.0f;
}
