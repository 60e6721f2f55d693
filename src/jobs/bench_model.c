#include "jobs/bench_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/stop.h"
#include "base/str.h"
#include "data/json.h"
#include "data/safetensors.h"

enum { PIECE = 1 << 18, BYTE_TOKENS = 259 /* <unk>, <s>, </s> and the bytes */ };

static const struct {
    const char *name;
    struct bench_shape shape;
} known[] = {
    {"tinyllama", {2048, 5632, 22, 32, 4, 32000, 2048, false, DT_BF16}},
    {"quillan", {256, 768, 6, 8, 4, 4096, 256, true, DT_BF16}},
};

/* ---- shapes ---- */

static const struct {
    const char *name, *config; /* in our words, and in those of config.json */
    size_t offset;
    int least, most;
} numbers[] = {
    {"width", "hidden_size", offsetof(struct bench_shape, width), 2, 1 << 16},
    {"neurons", "intermediate_size", offsetof(struct bench_shape, neurons), 1, 1 << 20},
    {"layers", "num_hidden_layers", offsetof(struct bench_shape, layers), 1, 512},
    {"heads", "num_attention_heads", offsetof(struct bench_shape, heads), 1, 1 << 12},
    {"kv_heads", "num_key_value_heads", offsetof(struct bench_shape, kv_heads), 1, 1 << 12},
    {"vocab", "vocab_size", offsetof(struct bench_shape, vocab), BYTE_TOKENS, 1 << 20},
    {"positions", "max_position_embeddings", offsetof(struct bench_shape, positions), 2, 1 << 24},
};
enum { NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };

static int *number_of(struct bench_shape *s, int i)
{
    return (int *)((char *)s + numbers[i].offset);
}

static status check_shape(const struct bench_shape *s, const char *source, struct err *e)
{
    if (s->width % s->heads || s->width / s->heads % 2 || s->heads % s->kv_heads)
        return err_set(e, ERR_SPEC, "%s: expected width / heads to be even and heads / kv_heads whole, found %d, %d and %d",
                       source, s->width, s->heads, s->kv_heads);
    return OK;
}

static status read_config(struct bench_shape *out, const char *path, struct err *e)
{
    struct json_t *c = NULL;
    status st = json_read(&c, path, 16 << 20, e);

    for (int i = 0; !st && i < NUMBERS; i++) {
        int64_t n = *number_of(out, i);
        bool optional = out->kv_heads == *number_of(out, i) || !strcmp(numbers[i].name, "positions");

        st = json_get_int(&n, c, numbers[i].config, numbers[i].least, numbers[i].most, optional ? JSON_OPTIONAL : JSON_REQUIRED,
                          path, e);
        *number_of(out, i) = (int)n;
        if (!strcmp(numbers[i].name, "heads")) out->kv_heads = (int)n; /* unless the file says otherwise */
    }
    if (!st) st = json_get_bool(&out->tied, c, "tie_word_embeddings", JSON_OPTIONAL, path, e);
    json_free(c);
    return st;
}

static status set_dtype(struct bench_shape *out, const char *value, struct err *e)
{
    for (enum dtype t = DT_F32; t <= DT_BF16; t++)
        if (!strcasecmp(dtype_name(t), value)) {
            out->dtype = t;
            return OK;
        }
    return err_set(e, ERR_SPEC, "--shape: dtype: expected f32, f16 or bf16, found '%.60s'", value);
}

static status set_one(struct bench_shape *out, const char *key, const char *value, struct err *e)
{
    char *end;
    long n = strtol(value, &end, 10);

    if (!strcmp(key, "dtype")) return set_dtype(out, value, e);
    if (!strcmp(key, "tied")) {
        out->tied = n == 1;
        return *end || n < 0 || n > 1 ? err_set(e, ERR_SPEC, "--shape: tied: expected 0 or 1, found '%.60s'", value) : OK;
    }
    for (int i = 0; i < NUMBERS; i++) {
        if (strcmp(numbers[i].name, key)) continue;
        if (*end || end == value || n < numbers[i].least || n > numbers[i].most)
            return err_set(e, ERR_SPEC, "--shape: %s: expected a number from %d to %d, found '%.60s'", key, numbers[i].least,
                           numbers[i].most, value);
        *number_of(out, i) = (int)n;
        return OK;
    }
    return err_set(e, ERR_SPEC,
                   "--shape: expected width, neurons, layers, heads, kv_heads, vocab, positions, tied or dtype, found '%.60s'",
                   key);
}

static status set_word(struct bench_shape *out, char *word, struct err *e)
{
    char *equals = strchr(word, '=');

    if (equals) {
        *equals = 0;
        return set_one(out, word, equals + 1, e);
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (!strcmp(known[i].name, word)) {
            *out = known[i].shape;
            return OK;
        }
    return err_set(e, ERR_SPEC, "--shape: expected tinyllama, quillan, key=value or a config.json, found '%.60s'", word);
}

status bench_shape_parse(struct bench_shape *out, const char *text, struct err *e)
{
    char *copy = str_dup(text);
    size_t n = strlen(text);
    status st = OK;

    *out = known[0].shape;
    if (n > 5 && !strcmp(text + n - 5, ".json")) st = read_config(out, text, e);
    else
        for (char *save = NULL, *word = strtok_r(copy, ",", &save); word && !st; word = strtok_r(NULL, ",", &save))
            st = set_word(out, word, e);
    free(copy);
    return st ? st : check_shape(out, text, e);
}

/* ---- tensors ---- */

struct tensor {
    char name[96];
    int rows, cols; /* rows 0: a vector of `cols` ones */
    double deviation;
};

/* Calls `visit` for every tensor in the order of the file. */
static status each_tensor(const struct bench_shape *s, status (*visit)(void *ctx, const struct tensor *t, struct err *e),
                          void *ctx, struct err *e)
{
    int head = s->width / s->heads, kv = s->kv_heads * head;
    double in = 0.02, out = 0.02 / sqrt(2.0 * s->layers);
    const struct tensor layer[] = {
        {"input_layernorm", 0, s->width, 0},           {"self_attn.q_proj", s->width, s->width, in},
        {"self_attn.k_proj", kv, s->width, in},        {"self_attn.v_proj", kv, s->width, in},
        {"self_attn.o_proj", s->width, s->width, out}, {"post_attention_layernorm", 0, s->width, 0},
        {"mlp.gate_proj", s->neurons, s->width, in},   {"mlp.up_proj", s->neurons, s->width, in},
        {"mlp.down_proj", s->width, s->neurons, out},
    };
    struct tensor t = {"model.embed_tokens.weight", s->vocab, s->width, in};
    status st = visit(ctx, &t, e);

    for (int l = 0; l < s->layers; l++)
        for (size_t i = 0; !st && i < sizeof(layer) / sizeof(layer[0]); i++) {
            t = layer[i];
            snprintf(t.name, sizeof(t.name), "model.layers.%d.%.40s.weight", l, layer[i].name);
            st = visit(ctx, &t, e);
        }
    t = (struct tensor){"model.norm.weight", 0, s->width, 0};
    if (!st) st = visit(ctx, &t, e);
    t = (struct tensor){"lm_head.weight", s->vocab, s->width, in};
    if (!st && !s->tied) st = visit(ctx, &t, e);
    return st;
}

struct making {
    const struct bench_shape *shape;
    struct safetensors_writer *to;
    struct log *log;
    const char *directory;
    uint64_t seed, tensor; /* number of the tensor */
    double done, total;
    float *value; /* [PIECE] */
    uint16_t *narrow;
};

static status declare(void *ctx, const struct tensor *t, struct err *e)
{
    struct making *m = ctx;

    (void)e;
    safetensors_declare(m->to, t->name, m->shape->dtype, t->rows ? 2 : 1,
                        t->rows ? (int64_t[]){t->rows, t->cols} : (int64_t[]){t->cols});
    return OK;
}

/* The sum of the four 16-bit parts of a random word, which is about normal. */
static void fill(float *value, size_t n, double deviation, uint64_t seed, uint64_t tensor, uint64_t piece)
{
    const double parts_deviation = 65536.0 / 1.7320508075688772;
    float scale = (float)(deviation / parts_deviation);
    struct rng r;

    rng_seed(&r, seed, rng_hash(seed, tensor, piece, 0));
    for (size_t i = 0; i < n; i++) {
        uint64_t x = rng_u64(&r);
        int sum = (int)(x & 0xffff) + (int)(x >> 16 & 0xffff) + (int)(x >> 32 & 0xffff) + (int)(x >> 48);

        value[i] = (float)(sum - 131070) * scale;
    }
}

static status write_piece(struct making *m, size_t n, struct err *e)
{
    if (m->shape->dtype == DT_F32) return safetensors_write(m->to, m->value, n * sizeof(*m->value), e);
    for (size_t i = 0; i < n; i++) m->narrow[i] = m->shape->dtype == DT_BF16 ? narrow_bf16(m->value[i]) : narrow_f16(m->value[i]);
    return safetensors_write(m->to, m->narrow, n * sizeof(*m->narrow), e);
}

static status write_tensor(void *ctx, const struct tensor *t, struct err *e)
{
    struct making *m = ctx;
    size_t left = (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols;
    status st = OK;

    m->tensor++;
    for (uint64_t piece = 0; !st && left; piece++) {
        size_t n = left < PIECE ? left : PIECE;

        if (t->rows) fill(m->value, n, t->deviation, m->seed, m->tensor, piece);
        else
            for (size_t i = 0; i < n; i++) m->value[i] = 1;
        st = stop_asked() ? err_set(e, STOPPED, "%s: stopped while writing; run it again", m->directory) : write_piece(m, n, e);
        left -= n;
        m->done += (double)n;
        log_progress(m->log, "make", m->done, m->total, "%.0f of %.0f M weights", m->done / 1e6, m->total / 1e6);
    }
    return st;
}

static status write_weights(const char *directory, const struct bench_shape *s, uint64_t seed, struct log *log, struct err *e)
{
    struct making m = {.shape = s, .seed = seed, .log = log, .directory = directory, .total = (double)bench_shape_parameters(s)};
    status st = safetensors_create(&m.to, directory, 0, e);

    if (st) return st;
    m.value = malloc(PIECE * sizeof(*m.value));
    m.narrow = malloc(PIECE * sizeof(*m.narrow));
    BUG_ON(!m.value || !m.narrow);
    safetensors_metadata(m.to, "format", "pt");
    st = each_tensor(s, declare, &m, e);
    if (!st) st = each_tensor(s, write_tensor, &m, e);
    log_progress_end(log);
    free(m.value);
    free(m.narrow);
    if (!st) return safetensors_commit(m.to, e);
    safetensors_abandon(m.to);
    return st;
}

static status count_one(void *ctx, const struct tensor *t, struct err *e)
{
    (void)e;
    *(int64_t *)ctx += (int64_t)(t->rows ? t->rows : 1) * t->cols;
    return OK;
}

int64_t bench_shape_parameters(const struct bench_shape *s)
{
    struct err ignored;
    int64_t n = 0;

    each_tensor(s, count_one, &n, &ignored);
    return n;
}

/* ---- the files beside the weights ---- */

static status write_config(const char *directory, const struct bench_shape *s, struct err *e)
{
    static const char *const torch[] = {[DT_F32] = "float32", [DT_F16] = "float16", [DT_BF16] = "bfloat16"};
    struct json_t *o = json_object_new(), *architectures = json_array_new();
    char *path = str_join(directory, "config.json");
    struct bench_shape copy = *s;

    json_append(architectures, json_text_new("LlamaForCausalLM", 16));
    json_put(o, "architectures", architectures);
    json_put_text(o, "model_type", "llama");
    for (int i = 0; i < NUMBERS; i++) json_put_int(o, numbers[i].config, *number_of(&copy, i));
    json_put_text(o, "hidden_act", "silu");
    json_put_int(o, "bos_token_id", 1);
    json_put_int(o, "eos_token_id", 2);
    json_put_real(o, "rms_norm_eps", 1e-5);
    json_put_real(o, "rope_theta", 10000);
    json_put_bool(o, "tie_word_embeddings", s->tied);
    json_put_text(o, "torch_dtype", torch[s->dtype]);
    status st = json_write(path, o, e);
    json_free(o);
    free(path);
    return st;
}

static void put_token(struct json_t *vocab, int id)
{
    char name[32];

    if (id < BYTE_TOKENS) snprintf(name, sizeof(name), "<0x%02X>", (unsigned)(id - 3));
    else snprintf(name, sizeof(name), "<filler %d>", id);
    json_put_int(vocab, id == 0 ? "<unk>" : id == 1 ? "<s>" : id == 2 ? "</s>" : name, id);
}

/* Every text is its bytes; the rest of the vocabulary is never met. */
static status write_tokenizer(const char *directory, const struct bench_shape *s, struct err *e)
{
    struct json_t *o = json_object_new(), *model = json_object_new(), *vocab = json_object_new(), *added = json_array_new();
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    char *path = str_join(directory, "tokenizer.json");

    for (int i = 0; i < 3; i++) {
        struct json_t *t = json_object_new();

        json_put_int(t, "id", i);
        json_put_text(t, "content", special[i]);
        json_put_bool(t, "special", true);
        json_append(added, t);
    }
    for (int id = 0; id < s->vocab; id++) put_token(vocab, id);
    json_put_text(o, "version", "1.0");
    json_put(o, "added_tokens", added);
    json_put_text(model, "type", "BPE");
    json_put_text(model, "unk_token", "<unk>");
    json_put_bool(model, "byte_fallback", true);
    json_put(model, "vocab", vocab);
    json_put(model, "merges", json_array_new());
    json_put(o, "model", model);
    status st = json_write(path, o, e);
    json_free(o);
    free(path);
    return st;
}

status bench_make_model(const char *directory, const struct bench_shape *s, uint64_t seed, struct log *log, struct err *e)
{
    char *config = str_join(directory, "config.json");
    bool there = file_exists(config);
    status st;

    free(config);
    if (there) return err_set(e, ERR_SPEC, "%s: there is a model already", directory);
    st = file_make_directory(directory, e);
    if (!st) st = write_weights(directory, s, seed, log, e);
    if (!st) st = write_tokenizer(directory, s, e);
    if (!st) st = write_config(directory, s, e); /* last: without it the directory is no model */
    return st;
}
