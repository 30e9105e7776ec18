/* One pass of new tokens through all layers: prefill, and decoding of one or many sequences.
 *
 * A layer is five regions of the team: qkv; rotary positions and attention; out; gate, up and SwiGLU;
 * down.  The norms of few rows are one task, which the caller does without waking anyone.  The rows of
 * all sequences go through the products together, so a weight is read once for all of them; attention
 * goes sequence by sequence.  Products, norms and SwiGLU work within rows and attention within
 * sequences, so no division of the tokens changes a bit. */
#include "tasks.h"

typedef struct decode_job {
    const cry_team *team;
    const cry_decoder *decoder;
    const cry_layer *layer;
    const cry_sequence *sequences;
    float *x, *mid, *h, *qkv, *act, *rrms;
    int64_t R, E, at; /* rows in all, width of qkv, number of the layer */
    /* of the region at hand */
    cry_block block;
    const cry_weight *weight;
    int32_t place[CRY_COLUMN_TASKS];
} decode_job;

static int64_t width_of_qkv(const cry_decoder *d)
{
    return (d->shape.H + 2 * d->shape.K) * d->shape.head_dim;
}

int64_t cry_need_decode(const cry_decoder *d, int64_t R)
{
    return 3 * cry_round64(R * d->D) + cry_round64(R * width_of_qkv(d)) + cry_round64(R * d->F) +
           cry_round64(R);
}

int64_t cry_need_decode_scratch(const cry_team *team, const cry_decoder *d, int64_t R)
{
    cry_attention one = d->shape;
    one.T = 1;
    int64_t widest = d->F > d->D ? d->F : d->D, attention = cry_need_attention(&one, 0);
    int64_t product = cry_need_weight(team, widest) + cry_round64(2 * R * cry_columns(team, d->F));
    return attention > product ? attention : product;
}

static float *scratch_of(const decode_job *w, int thread)
{
    return w->team->scratch + thread * w->team->scratch_len;
}

/* A region over columns of an output of N columns. */
static void run_columns(decode_job *w, int64_t N, cry_task *task)
{
    int64_t tasks = cry_ceil(N, cry_columns(w->team, N));
    cry_side_by_side(w->team, tasks, w->place);
    cry_run(w->team, tasks, task, w);
}

static void product_task(void *context, int64_t task, int thread)
{
    const decode_job *w = context;
    cry_block b = w->block;
    int64_t columns = cry_columns(w->team, b.n);
    b.j = w->place[task] * columns;
    b.n = cry_smaller(columns, b.n - b.j);
    cry_weight_block(w->team, &b, w->weight, scratch_of(w, thread));
}

/* y(R,N) = init + x(R,K) w^T. */
static void product(decode_job *w, float *y, const float *x, const cry_weight *weight,
                    const float *init, int64_t N, int64_t K)
{
    w->block = (cry_block){.y = y, .init = init, .x = x, .ldy = N, .ldi = N, .R = w->R, .n = N,
                           .K = K};
    w->weight = weight;
    run_columns(w, N, product_task);
}

/* Some columns of act(R,F) = silu(h gate^T) (h up^T); gate and up lie side by side in scratch. */
static void gate_task(void *context, int64_t task, int thread)
{
    const decode_job *w = context;
    int64_t D = w->decoder->D, F = w->decoder->F, columns = cry_columns(w->team, F);
    int64_t j = w->place[task] * columns, n = cry_smaller(columns, F - j);
    float *wide = scratch_of(w, thread), *gu = wide + cry_need_weight(w->team, D);
    /* The block writes at y + j. */
    cry_block b = {.y = gu - j, .x = w->h, .ldy = 2 * n, .R = w->R, .j = j, .n = n, .K = D};
    cry_weight_block(w->team, &b, &w->layer->gate, wide);
    b.y = gu + n - j;
    cry_weight_block(w->team, &b, &w->layer->up, wide);
    for (int64_t r = 0; r < w->R; r++)
        w->team->kernels->swiglu(w->act + r * F + j, gu + r * 2 * n, 1, n);
}

/* One key/value head of one sequence: its queries and keys are turned, then it attends. */
static void attention_task(void *context, int64_t task, int thread)
{
    const decode_job *w = context;
    const cry_decoder *d = w->decoder;
    const cry_kernels *kernels = w->team->kernels;
    const cry_attention *c = &d->shape;
    int64_t b = task / c->K, head = task % c->K, share = c->H / c->K, first = 0, dh = c->head_dim;
    for (int64_t i = 0; i < b; i++) first += w->sequences[i].rows;
    const cry_sequence *s = w->sequences + b;
    int64_t wide = cry_ceil(dh, 32) * 32, T = s->rows;
    int64_t at = s->position, before = w->at * c->K * s->capacity; /* of the layers before */
    float *qkv = w->qkv + first * w->E;
    kernels->rope(qkv + head * share * dh, d->cosine, d->sine, T, w->E, share, dh, at, T, 0);
    kernels->rope(qkv + (c->H + head) * dh, d->cosine, d->sine, T, w->E, 1, dh, at, T, 0);
    kernels->attention_cached(w->h + first * c->H * dh, qkv, s->keys + before * dh,
                              s->values + before * wide, c, head, T, at, s->capacity,
                              scratch_of(w, thread));
}

static void run_layer(decode_job *w, int64_t B)
{
    const cry_decoder *d = w->decoder;
    const cry_layer *layer = w->layer;
    int64_t R = w->R, D = d->D, F = d->F;
    cry_rmsnorm(w->team, w->h, w->rrms, w->x, layer->norm, R, D, d->eps);
    product(w, w->qkv, w->h, &layer->qkv, 0, w->E, D);
    cry_run(w->team, B * d->shape.K, attention_task, w);
    product(w, w->mid, w->h, &layer->out, w->x, D, d->shape.H * d->shape.head_dim);
    cry_rmsnorm(w->team, w->h, w->rrms, w->mid, layer->norm2, R, D, d->eps);
    run_columns(w, F, gate_task);
    product(w, w->x, w->act, &layer->down, w->mid, D, F);
}

static int decoder_ok(const cry_decoder *d)
{
    const cry_attention *c = &d->shape;
    if (d->layers < 1 || d->D < 1 || d->F < 1 || d->V < 1 || c->K < 1 || c->H < 1) return 0;
    return c->H % c->K == 0 && c->head_dim % 2 == 0 && c->H * c->head_dim == d->D;
}

cry_status cry_decode(const cry_team *team, float *h, const cry_decoder *d, const int32_t *ids,
                      const cry_sequence *sequences, int64_t B)
{
    int64_t R = 0;
    if (B < 0 || !decoder_ok(d)) return CRY_BAD_SHAPE;
    for (int64_t b = 0; b < B; b++) {
        const cry_sequence *s = sequences + b;
        if (s->rows < 1 || s->position < 0 || s->capacity % 64 || s->rows > s->capacity ||
            s->position > s->capacity - s->rows || s->position > d->positions - s->rows)
            return CRY_BAD_SHAPE;
        for (const cry_sequence *o = sequences; o < s; o++)
            if (o->keys == s->keys || o->values == s->values) return CRY_BAD_LIST;
        R += s->rows;
    }
    if (R == 0) return CRY_OK;
    if (team->shared_len < cry_need_decode(d, R)) return CRY_NO_SCRATCH;
    if (team->scratch_len < cry_need_decode_scratch(team, d, R)) return CRY_NO_SCRATCH;
    decode_job w = {.team = team, .decoder = d, .sequences = sequences, .R = R};
    w.E = width_of_qkv(d);
    w.x = team->shared;
    w.mid = w.x + cry_round64(R * d->D);
    w.h = w.mid + cry_round64(R * d->D);
    w.qkv = w.h + cry_round64(R * d->D);
    w.act = w.qkv + cry_round64(R * w.E);
    w.rrms = w.act + cry_round64(R * d->F);
    cry_status status = cry_embedding_weight(team, w.x, &d->embedding, ids, R, d->V, d->D);
    if (status != CRY_OK) return status;
    for (w.at = 0; w.at < d->layers; w.at++) {
        w.layer = d->layer + w.at;
        run_layer(&w, B);
    }
    return cry_rmsnorm(team, h, w.rrms, w.x, d->norm, R, d->D, d->eps);
}
