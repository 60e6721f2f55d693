/* How training went: what log.jsonl says of every step, drawn over the tokens seen. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"

enum { KEYS_MAX = 12, BUCKETS = 160, STEPS_MAX = 4000000 };

struct series {
    int n, keys;
    const char *key[KEYS_MAX]; /* borrowed from the JSON */
    double *tokens, *step, *value[KEYS_MAX];
};

/* Numbers of a step that say how, not how well. */
static bool is_figure(const char *key)
{
    static const char *const not [] = {"step",     "tokens",   "tokens_per_second", "learning_rate", "gradient_norm",
                                       "load_min", "load_max", "seconds",           "pass"};

    for (size_t i = 0; i < sizeof(not ) / sizeof(*not ); i++)
        if (!strcmp(key, not [i])) return false;
    return true;
}

static double mean_of(const struct json_t *v)
{
    double sum = 0;

    if (json_is_real(v)) return json_number(v);
    if (!json_is_array(v) || json_length(v) == 0) return NAN;
    for (size_t i = 0; i < json_length(v); i++) {
        if (!json_is_real(json_item(v, i))) return NAN;
        sum += json_number(json_item(v, i));
    }
    return sum / (double)json_length(v);
}

static int key_of(struct series *s, const char *key)
{
    for (int k = 0; k < s->keys; k++)
        if (!strcmp(s->key[k], key)) return k;
    if (s->keys == KEYS_MAX) return -1;
    s->key[s->keys] = key;
    for (int i = 0; i < s->n; i++) s->value[s->keys][i] = NAN;
    return s->keys++;
}

/* A launch that went on from a checkpoint, or began anew, says some steps again: the last word counts. */
static status add_step(struct series *s, const struct json_t *o, const char *source, struct err *e)
{
    double step, tokens;

    if (report_number(&step, o, "step", source, e) || report_number(&tokens, o, "tokens", source, e)) return e->code;
    if (isnan(step) || isnan(tokens)) return OK;
    while (s->n > 0 && s->step[s->n - 1] >= step) s->n--;
    s->step[s->n] = step;
    s->tokens[s->n] = tokens;
    for (int k = 0; k < s->keys; k++) s->value[k][s->n] = NAN;
    for (void *i = json_first(o); i; i = json_next(o, i)) {
        double x = mean_of(json_member(i));

        if (isnan(x) || !is_figure(json_key(i))) continue;
        int k = key_of(s, json_key(i));
        if (k >= 0) s->value[k][s->n] = x;
    }
    s->n++;
    return OK;
}

static void series_free(struct series *s)
{
    free(s->tokens);
    free(s->step);
    for (int k = 0; k < KEYS_MAX; k++) free(s->value[k]);
}

static status series_make(struct series *s, const struct json_t *lines, const char *source, struct err *e)
{
    size_t n = lines ? json_length(lines) : 0;

    *s = (struct series){0};
    if (n > STEPS_MAX) return err_set(e, ERR_LIMIT, "%s: more than %d lines", source, STEPS_MAX);
    s->tokens = calloc(n + 1, sizeof(double));
    s->step = calloc(n + 1, sizeof(double));
    BUG_ON(!s->tokens || !s->step);
    for (int k = 0; k < KEYS_MAX; k++) BUG_ON(!(s->value[k] = calloc(n + 1, sizeof(double))));
    for (size_t i = 0; i < n; i++) {
        const char *event;

        if (report_word(&event, json_item(lines, i), "event", source, e)) return e->code;
        if (event && !strcmp(event, "step") && add_step(s, json_item(lines, i), source, e)) return e->code;
    }
    return OK;
}

/* At most BUCKETS points: of each its mean, least and most. */
static int thin(const struct series *s, int k, double x[BUCKETS], double mean[BUCKETS], double low[BUCKETS], double high[BUCKETS])
{
    int buckets = s->n < BUCKETS ? s->n : BUCKETS, n = 0;

    for (int b = 0; b < buckets; b++) {
        int from = (int)((int64_t)s->n * b / buckets), to = (int)((int64_t)s->n * (b + 1) / buckets), seen = 0;
        double sum = 0, tokens = 0;

        low[n] = INFINITY;
        high[n] = -INFINITY;
        for (int i = from; i < to; i++) {
            double v = s->value[k][i];

            if (!isfinite(v)) continue;
            sum += v;
            tokens += s->tokens[i];
            low[n] = fmin(low[n], v);
            high[n] = fmax(high[n], v);
            seen++;
        }
        if (!seen) continue;
        x[n] = tokens / seen;
        mean[n++] = sum / seen;
    }
    return n;
}

static const char *unit_of(const char *key)
{
    if (!strcmp(key, "agreement")) return "agreement, mean of the layers";
    if (!strcmp(key, "loss")) return "loss";
    if (!strcmp(key, "kl")) return "KL to the dense model, nats";
    if (!strcmp(key, "lm") || !strcmp(key, "nats")) return "loss of the language model, nats";
    if (!strcmp(key, "active_share")) return "f, share of neurons active";
    return key;
}

static void put_curve(struct str *out, const struct series *s, int k)
{
    double x[BUCKETS], mean[BUCKETS], low[BUCKETS], high[BUCKETS], least = INFINITY, most = -INFINITY;
    int n = thin(s, k, x, mean, low, high);
    struct str title = {0};

    if (n < 2) return;
    for (int i = 0; i < n; i++) {
        least = fmin(least, low[i]);
        most = fmax(most, high[i]);
    }
    bool log = least > 0 && most / least > 30 && strcmp(s->key[k], "agreement") != 0;
    if (log) {
        least /= 1.15;
        most *= 1.15;
    } else svg_widen(&least, &most, least >= 0 ? 0 : NAN);
    struct svg_plot p = {.out = out, .width = 460, .height = 270};
    p.x = (struct svg_axis){.low = 0, .high = s->tokens[s->n - 1], .label = "tokens seen"};
    p.y = (struct svg_axis){.low = least, .high = most, .log = log, .label = unit_of(s->key[k])};
    str_addf(&title, "%s over tokens", s->key[k]);
    str_addz(out, "<figure>");
    svg_plot_open(&p, title.text);
    if (s->n > BUCKETS) svg_band(&p, x, low, high, n, "band k1");
    svg_line(&p, x, mean, n, n > 40 ? "line thin k1" : "line k1");
    svg_plot_close(&p);
    str_addz(out, "<figcaption><b>");
    html_text(out, s->key[k]);
    str_addz(out, "</b>: ");
    html_number(out, s->value[k][0], 4);
    str_addz(out, " at the first step, ");
    html_number(out, s->value[k][s->n - 1], 4);
    str_addz(out, " at the last of ");
    html_number(out, s->step[s->n - 1], 0);
    if (s->n > BUCKETS) str_addz(out, "; line: mean, band: least and most of neighbouring steps");
    str_addz(out, log ? "; logarithmic.</figcaption></figure>\n" : ".</figcaption></figure>\n");
    str_free(&title);
}

static status put_run(struct report *r, const struct report_run *run, bool *open, struct err *e)
{
    struct json_t *lines;
    struct series s = {0};
    struct str path = {0};

    str_addf(&path, "%s/log.jsonl", run->directory);
    status st = report_lines(&lines, run->directory, "log.jsonl", e);
    if (!st) st = series_make(&s, lines, path.text, e);
    if (!st && s.n < 2)
        report_missing(r, lines ? "%s: has no two steps, so no curve" : "%s: is not there, so no curve", path.text);
    if (!st && s.n >= 2) {
        if (!*open)
            report_section(
                r, "training", "How the routers were trained",
                "What every step of the optimizer said of its own batch; figures on text that was not learned from stand above.");
        *open = true;
        report_heading(r, run, true);
        str_addz(&r->body, "<div class=\"grid\">\n");
        for (int k = 0; k < s.keys; k++) put_curve(&r->body, &s, k);
        str_addz(&r->body, "</div>\n");
    }
    series_free(&s);
    json_free(lines);
    str_free(&path);
    return st;
}

status report_curves(struct report *r, struct err *e)
{
    bool open = false;

    for (int i = 0; i < r->n; i++)
        if (r->run[i].kind == JOB_FINETUNE && r->run[i].row < 0 && put_run(r, &r->run[i], &open, e)) return e->code;
    if (open) report_section_end(r);
    return OK;
}
