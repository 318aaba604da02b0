/*
 * A DDSP instrument: pitch and loudness in, audio out. C99 and C++; include it in one file.
 *
 *   @DECODER@
 *   @SYNTH@
 *
 *     static ddsp_state synth; // no pointers: a copy is another instrument
 *
 *     void prepare(void)
 *     {
 *         ddsp_init(&synth, 0); // the seed of the noise
 *     }
 *
 *     // f0_hz and loudness_db: n_frames values, one for each @HOP@ samples (@MS@ ms) of audio.
 *     void callback(const float *f0_hz, const float *loudness_db, int n_frames, float *audio)
 *     {
 *         ddsp_process(&synth, f0_hz, loudness_db, n_frames, audio);
 *     }
 *
 * - f0_hz in Hz, 0 or less where there is no pitch. loudness_db from -80 to 0 dB.
 * - n_frames is @CYCLE@; blocks may differ, the audio does not depend on them.
 * - audio gets n_frames * DDSP_HOP samples at DDSP_SAMPLE_RATE Hz. Nothing clips it to [-1, 1].
 * - What a control does is heard DDSP_LATENCY (@LATENCY@) samples later; silence comes before.
 * - Nothing is allocated, locked or thrown; each frame takes about the same time. A control that is
 *   not finite, or beyond a million, counts as no pitch, or as -80 dB.
 * - Compile with -O3 and for the processor at hand (-march=native, or -mavx2 -mfma).
 */
