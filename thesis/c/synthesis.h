/* ---- Harmonics ---- */

/* The amplitude of each harmonic of a frame, zero from Nyquist on. Returns how many are below. */
static inline int ddsp_amplitudes(float *amplitudes, const float *outputs, double f0_hz)
{
    const double limit = f0_hz > 0.0 ? DDSP_SAMPLE_RATE / 2.0 / f0_hz : 0.0;
    const int audible = limit > DDSP_HARMONICS ? DDSP_HARMONICS : (int)ceil(limit) - (limit > 0.0);
    float gain;
    for (int k = 0; k < DDSP_HARMONICS; k++)
        amplitudes[k] = ddsp_exp_sigmoid(outputs[1 + k]);
    for (int k = audible; k < DDSP_HARMONICS; k++)
        amplitudes[k] = 0.0f;
    gain = ddsp_exp_sigmoid(outputs[0]) / (ddsp_sum(amplitudes, DDSP_HARMONICS) + 1e-30f);
    for (int k = 0; k < DDSP_HARMONICS; k++)
        amplitudes[k] *= gain;
    return audible;
}

/* Adds a group of harmonics to a frame of audio. The first two are exact, the others follow by
   sin((k + 1) t) = 2 cos(t) sin(k t) - sin((k - 1) t), whose error grows with the square of
   their number. Where `limit` is given, harmonic k sounds in samples with k < limit. */
static inline void ddsp_harmonic_group(float *DDSP_RESTRICT audio,
                                       const uint32_t *DDSP_RESTRICT phase,
                                       const float *DDSP_RESTRICT twice_cosine,
                                       const int32_t *DDSP_RESTRICT limit,
                                       const float *DDSP_RESTRICT amplitudes,
                                       const float *DDSP_RESTRICT changes, int first)
{
    for (int h = 0; h < DDSP_HOP; h++) {
        float sine = ddsp_sine(phase[h] * (uint32_t)first);
        float next = ddsp_sine(phase[h] * (uint32_t)(first + 1));
        float from = 0.0f, change = 0.0f;
        for (int k = 0; k < DDSP_GROUP; k++) {
            const float heard = !limit || first + k < limit[h] ? sine : 0.0f;
            const float after = twice_cosine[h] * next - sine;
            from += amplitudes[k] * heard;
            change += changes[k] * heard;
            sine = next;
            next = after;
        }
        audio[h] += from + ddsp_crossfade[h] * change;
    }
}

/* Adds the harmonics from the last frame to this one: pitch moves linearly, amplitudes are
   crossfaded (Engel et al. 2020, section 3.2). */
static inline void ddsp_harmonics(ddsp_state *s, const float *outputs, float f0_hz, float *audio)
{
    float amplitudes[DDSP_GROUPS * DDSP_GROUP] = {0.0f};
    float changes[DDSP_GROUPS * DDSP_GROUP];
    const double f0 = s->f0_hz, slope = (f0_hz - f0) / DDSP_HOP;
    const int audible = ddsp_amplitudes(amplitudes, outputs, f0_hz);
    const int some = audible > s->audible ? audible : s->audible;
    const int all = audible < s->audible ? audible : s->audible;
    if (some > 0) {
        uint32_t phase[DDSP_HOP];
        float twice_cosine[DDSP_HOP];
        int32_t limit[DDSP_HOP];
        for (int k = 0; k < DDSP_GROUPS * DDSP_GROUP; k++)
            changes[k] = amplitudes[k] - s->amplitudes[k];
        for (int h = 0; h < DDSP_HOP; h++) {
            /* The running sum of a linear ramp. */
            const double sum = f0 * (h + 1) + slope * (0.5 * h * (h + 1));
            const double cycles = s->cycles + sum / DDSP_SAMPLE_RATE;
            const double fraction = cycles - (int32_t)cycles; /* of the sign of the pitch */
            phase[h] = (uint32_t)(int32_t)(fraction * 2147483647.0) << 1;
            twice_cosine[h] = 2.0f * ddsp_sine(phase[h] + 0x40000000u);
        }
        if (all < some) {
            for (int h = 0; h < DDSP_HOP; h++) {
                const double pitch = f0 + slope * h;
                const double ratio = DDSP_SAMPLE_RATE / 2.0 / (pitch > 1e-9 ? pitch : 1e-9);
                const double first = ratio < DDSP_HARMONICS ? ceil(ratio) : DDSP_HARMONICS + 1.0;
                limit[h] = pitch > 0.0 ? (int32_t)first : 0;
            }
        }
        for (int k = 0; k < some; k += DDSP_GROUP) {
            if (all == some || k + DDSP_GROUP <= all)
                ddsp_harmonic_group(audio, phase, twice_cosine, NULL, s->amplitudes + k,
                                    changes + k, k + 1);
            else
                ddsp_harmonic_group(audio, phase, twice_cosine, limit, s->amplitudes + k,
                                    changes + k, k + 1);
        }
    }
    s->cycles += (f0 * DDSP_HOP + slope * (0.5 * (DDSP_HOP - 1.0) * DDSP_HOP)) / DDSP_SAMPLE_RATE;
    s->cycles -= floor(s->cycles);
    memcpy(s->amplitudes, amplitudes, sizeof amplitudes);
    s->f0_hz = f0_hz;
    s->audible = audible;
}

/* ---- Noise ---- */

/* audio += a * b, in tiles that stay in registers. `padded` has n_a - 1 zeros and then b, and zeros
   after it to n_audio + n_a - 1, where n_audio is a multiple of the tile. */
static inline void ddsp_convolve(float *DDSP_RESTRICT audio, int n_audio,
                                 const float *DDSP_RESTRICT a, int n_a,
                                 const float *DDSP_RESTRICT padded)
{
    for (int n = 0; n < n_audio; n += DDSP_TILE) {
        float tile[DDSP_TILE] = {0.0f};
        for (int i = 0; i < n_a; i++)
            for (int j = 0; j < DDSP_TILE; j++)
                tile[j] += a[i] * padded[n + n_a - 1 - i + j];
        for (int j = 0; j < DDSP_TILE; j++)
            audio[n + j] += tile[j];
    }
}

/* Adds a frame of filtered noise (Engel et al. 2020, section 3.5). The filter is symmetric, and
   linear in its magnitudes. Of `number` the noise of a sample is a hash. */
static inline void ddsp_noise(ddsp_state *s, const float *outputs, uint32_t number, float *audio)
{
    float magnitudes[DDSP_BANDS], half[DDSP_BANDS - 1] = {0.0f};
    float taps[DDSP_TAPS], noise[DDSP_HOP];
    float padded[DDSP_FILTERED + (DDSP_TAPS < DDSP_HOP ? DDSP_TAPS : DDSP_HOP) - 1] = {0.0f};
    for (int i = 0; i < DDSP_BANDS; i++)
        magnitudes[i] = ddsp_exp_sigmoid(outputs[1 + DDSP_HARMONICS + i] + DDSP_NOISE_BIAS);
    ddsp_dense(half, magnitudes, ddsp_filter, DDSP_BANDS, DDSP_BANDS - 1);
    for (int i = 0; i < DDSP_BANDS - 1; i++)
        taps[DDSP_BANDS - 2 - i] = taps[DDSP_BANDS - 2 + i] = half[i];
    for (int i = 0; i < DDSP_HOP; i++)
        noise[i] = ddsp_uniform((number + (uint32_t)i) ^ s->key);
#if DDSP_TAPS < DDSP_HOP
    memcpy(padded + DDSP_TAPS - 1, noise, sizeof noise);
    ddsp_convolve(audio, DDSP_FILTERED, taps, DDSP_TAPS, padded);
#else
    memcpy(padded + DDSP_HOP - 1, taps, sizeof taps);
    ddsp_convolve(audio, DDSP_FILTERED, noise, DDSP_HOP, padded);
#endif
}
