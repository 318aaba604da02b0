/* ---- The chain ---- */

/* The audio of one frame, late by DDSP_LATENCY. */
static inline void ddsp_synthesize(ddsp_state *s, int64_t frame, float *audio)
{
    const int64_t number = frame - DDSP_DECODER_DELAY; /* counted from the first that was decoded */
    const float *decoded = DDSP_ROW(s->output, frame);
    const float f0_hz = DDSP_ROW(s->f0, number), loudness = DDSP_ROW(s->loudness, number);
    float outputs[DDSP_OUTPUTS];
    if (frame < DDSP_DECODER_DELAY) {
        memset(audio, 0, DDSP_HOP * sizeof *audio);
        return;
    }
    /* Levels are relative to loudness, or to nothing: slopes are zero then. */
    for (int i = 0; i < DDSP_OUTPUTS; i++)
        outputs[i] = decoded[i] + loudness * ddsp_slopes[i];
    ddsp_harmonics(s, outputs, f0_hz, s->dry + (DDSP_SYNTHESIS_DELAY - 1) * DDSP_HOP);
    if (number == 0)
        s->cycles = 0.0; /* the way to the first frame is no part of it */
    ddsp_noise(s, outputs, (uint32_t)number * DDSP_HOP, s->dry + DDSP_NOISE_OFFSET);
    if (number < DDSP_SYNTHESIS_DELAY)
        memset(audio, 0, DDSP_HOP * sizeof *audio);
    else
#if DDSP_HEAD_PARTITIONS > 0
        ddsp_reverb(s, s->dry, audio);
#else
        memcpy(audio, s->dry, DDSP_HOP * sizeof *audio);
#endif
    memmove(s->dry, s->dry + DDSP_HOP, sizeof s->dry - DDSP_HOP * sizeof *s->dry);
    memset(s->dry + sizeof s->dry / sizeof *s->dry - DDSP_HOP, 0, DDSP_HOP * sizeof *s->dry);
}

/* Makes a state that starts from silence. The seed is that of the noise. */
static inline void ddsp_init(ddsp_state *s, uint32_t seed)
{
    memset(s, 0, sizeof *s);
    s->key = ddsp_hash(ddsp_hash(seed));
}

/* Decodes only, for measurements: `outputs` is [n_frames][DDSP_OUTPUTS], late by
   DDSP_DECODER_DELAY frames. A state is for this or for ddsp_process. */
static inline void ddsp_decode(ddsp_state *s, const float *f0_hz, const float *loudness_db,
                               int n_frames, float *outputs)
{
    for (int done = 0, n; done < n_frames; done += n) {
        n = n_frames - done < DDSP_CHUNK ? n_frames - done : DDSP_CHUNK;
        ddsp_decode_chunk(s, f0_hz + done, loudness_db + done, n);
        for (int i = 0; i < n; i++)
            memcpy(outputs + (done + i) * DDSP_OUTPUTS,
                   DDSP_ROW(s->output, s->frame + i), DDSP_OUTPUTS * sizeof *outputs);
        s->frame += n;
    }
}

/* Plays a block, a multiple of DDSP_CYCLE frames: controls are [n_frames], audio is
   [n_frames * DDSP_HOP]. */
static inline void ddsp_process(ddsp_state *s, const float *f0_hz, const float *loudness_db,
                                int n_frames, float *audio)
{
    for (int done = 0, n; done < n_frames; done += n) {
        n = n_frames - done < DDSP_CHUNK ? n_frames - done : DDSP_CHUNK;
        ddsp_decode_chunk(s, f0_hz + done, loudness_db + done, n);
        for (int i = 0; i < n; i++)
            ddsp_synthesize(s, s->frame + i, audio + (done + i) * DDSP_HOP);
        s->frame += n;
    }
}
