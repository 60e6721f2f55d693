/* What was done: model, factorization, digests, versions, and the commands that do it again. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "jobs/report.h"

static void put_term(struct str *out, const char *term)
{
    str_addf(out, "<dt>%s</dt><dd>", term);
}

static void put_words(struct str *out, const char *term, const char *text)
{
    if (!text || !*text) return;
    put_term(out, term);
    html_text(out, text);
    str_addz(out, "</dd>\n");
}

static void put_code(struct str *out, const char *term, const char *text)
{
    if (!text || !*text) return;
    put_term(out, term);
    str_addz(out, "<code>");
    html_text(out, text);
    str_addz(out, "</code></dd>\n");
}

/* A number, or one for every layer: "16" or "12 to 20". */
static status put_range(struct str *out, const struct json_t *o, const char *key, const char *source, struct err *e)
{
    const struct json_t *v = o ? json_at(o, key) : NULL;
    double low = INFINITY, high = -INFINITY;

    if (!v || !json_is_array(v)) {
        double x;

        if (report_number(&x, o, key, source, e)) return e->code;
        html_number(out, x, isfinite(x) && x != floor(x) ? 1 : 0);
        return OK;
    }
    for (size_t i = 0; i < json_length(v); i++) {
        if (!json_is_real(json_item(v, i)))
            return err_set(e, ERR_FORMAT, "%s: %s: expected a list of numbers, found something else", source, key);
        low = fmin(low, json_number(json_item(v, i)));
        high = fmax(high, json_number(json_item(v, i)));
    }
    if (json_length(v) == 0) low = high = NAN;
    html_number(out, low, 0);
    if (high > low) {
        str_addz(out, " to ");
        html_number(out, high, 0);
    }
    return OK;
}

static status put_cut(struct str *out, const struct report_run *run, struct err *e)
{
    double least, most, share;
    const char *source = run->source;

    if (report_number(&least, run->o, "expert_neurons_least", source, e) ||
        report_number(&most, run->o, "expert_neurons_most", source, e) ||
        report_number(&share, run->o, "active_share", source, e))
        return e->code;
    put_term(out, "cut");
    if (put_range(out, run->o, "experts", source, e)) return e->code;
    str_addz(out, " experts a layer of ");
    html_number(out, least, 0);
    if (most > least) {
        str_addz(out, " to ");
        html_number(out, most, 0);
    }
    str_addz(out, " neurons, ");
    if (put_range(out, run->o, "active", source, e)) return e->code;
    str_addz(out, " active, ");
    if (put_range(out, run->o, "shared_neurons", source, e)) return e->code;
    str_addz(out, " neurons shared: f = ");
    html_number(out, 100 * share, 1);
    str_addz(out, " %</dd>\n");
    return OK;
}

static status put_shape(struct str *out, const struct report_run *run, struct err *e)
{
    double layers, width, neurons, all, ffn;

    if (report_number(&layers, run->o, "layers", run->source, e) || report_number(&width, run->o, "width", run->source, e) ||
        report_number(&neurons, run->o, "neurons", run->source, e) || report_number(&all, run->o, "parameters", run->source, e) ||
        report_number(&ffn, run->o, "ffn_parameters", run->source, e))
        return e->code;
    put_term(out, "shape");
    html_number(out, layers, 0);
    str_addz(out, " layers, width ");
    html_number(out, width, 0);
    str_addz(out, ", ");
    html_number(out, neurons, 0);
    str_addz(out, " neurons; ");
    html_human(out, all);
    str_addz(out, " parameters, of them ");
    html_human(out, ffn);
    str_addz(out, " in the FFNs</dd>\n");
    return OK;
}

static status put_method(struct str *out, const struct report_run *run, struct err *e)
{
    static const char *const words[] = {"grouping", "compensation"};
    const struct json_t *o;
    const char *word;
    struct str text = {0};
    double seed;

    status s = report_object(&o, run->o, "factorization", run->source, e);
    if (!s) s = report_word(&word, o, "method", run->source, e);
    if (!s && word) str_addz(&text, word);
    for (int i = 0; i < 2 && !s; i++) {
        s = report_word(&word, o, words[i], run->source, e);
        if (!s && word) str_addf(&text, "%s%s %s", text.length ? ", " : "", words[i], word);
    }
    if (!s) s = report_number(&seed, o, "seed", run->source, e);
    if (!s && isfinite(seed)) str_addf(&text, "%sseed %.0f", text.length ? ", " : "", seed);
    if (!s) put_words(out, "method", text.text);
    str_free(&text);
    return s;
}

static status put_factorize(struct str *out, const struct report_run *run, struct err *e)
{
    const struct json_t *o;
    const char *model = NULL, *digest = NULL, *made = NULL;

    if (report_object(&o, run->o, "source", run->source, e) || report_word(&model, o, "model", run->source, e) ||
        report_word(&digest, o, "digest", run->source, e) || report_word(&made, run->o, "digest", run->source, e))
        return e->code;
    put_code(out, "dense model", model);
    put_code(out, "its digest", digest);
    if (put_shape(out, run, e) || put_cut(out, run, e) || put_method(out, run, e)) return e->code;
    put_code(out, "factorized digest", made);
    return OK;
}

static status put_finetune(struct str *out, const struct report_run *run, struct err *e)
{
    const struct json_t *loss;
    const char *version;
    double tokens, steps, before, after;

    if (report_word(&version, run->o, "version", run->source, e) || report_number(&tokens, run->o, "tokens", run->source, e) ||
        report_number(&steps, run->o, "steps", run->source, e) || report_object(&loss, run->o, "loss", run->source, e) ||
        report_number(&before, loss, "before", run->source, e) || report_number(&after, loss, "after", run->source, e))
        return e->code;
    put_term(out, "router");
    html_text(out, version ? version : "\xe2\x80\x93");
    str_addz(out, ": ");
    html_number(out, tokens, 0);
    str_addz(out, " tokens in ");
    html_number(out, steps, 0);
    str_addz(out, " steps; loss on text not learned from ");
    html_number(out, before, 3);
    str_addz(out, " \xe2\x86\x92 ");
    html_number(out, after, 3);
    str_addz(out, "</dd>\n");
    return OK;
}

static status put_place(struct str *out, const struct report_run *run, const struct json_t *file, const char *path, struct err *e)
{
    const char *version, *started, *state, *kernels;
    double ranks, threads, seconds;

    (void)run;
    if (report_word(&version, file, "version", path, e) || report_word(&started, file, "started", path, e) ||
        report_word(&state, file, "status", path, e) || report_word(&kernels, file, "kernels", path, e) ||
        report_number(&ranks, file, "ranks", path, e) || report_number(&threads, file, "threads", path, e) ||
        report_number(&seconds, file, "seconds", path, e))
        return e->code;
    put_term(out, "run");
    html_text(out, started ? started : "?");
    str_addz(out, ", ");
    html_number(out, seconds, 1);
    str_addz(out, " s on ");
    html_number(out, ranks, 0);
    str_addf(out, " rank%s of ", ranks == 1 ? "" : "s");
    html_number(out, threads, 0);
    str_addf(out, " thread%s", threads == 1 ? "" : "s");
    if (kernels) {
        str_addz(out, " (");
        html_text(out, kernels);
        str_addz(out, ")");
    }
    str_addz(out, "; ended: ");
    html_text(out, state ? state : "?");
    str_addz(out, "</dd>\n");
    put_words(out, "program", version);
    return OK;
}

/* What the spec beside it says, where there is one. */
static void put_model(struct str *out, const char *directory)
{
    char *path = str_join(directory, "spec.yaml");
    struct spec *s = NULL;
    struct err ignored;

    if (file_exists(path) && !spec_load(&s, path, NULL, 0, &ignored)) {
        put_code(out, "model", s->model);
        spec_free(s);
    }
    free(path);
}

/* All runs of one input, which stand together, the first with the file. */
static status put_input(struct report *r, int first, struct err *e)
{
    const struct report_run *run = &r->run[first];
    struct str *out = &r->body, path = {0};
    const char *colon = strstr(run->source, "/result.json: ");
    status s = OK;

    report_heading(r, run, false);
    str_add(&path, run->source, (size_t)(colon - run->source));
    str_addz(out, "<dl>\n");
    for (int i = first; i < r->n && r->run[i].input == run->input && !s; i++) {
        if (r->run[i].kind == JOB_FACTORIZE) s = put_factorize(out, &r->run[i], e);
        if (r->run[i].kind == JOB_FINETUNE) s = put_finetune(out, &r->run[i], e);
    }
    if (!s && !report_find(r, run->input, JOB_FACTORIZE)) put_model(out, path.text);
    if (!s) {
        str_addz(&path, "/result.json");
        s = put_place(out, run, run->file, path.text, e);
        path.text[colon - run->source] = 0;
    }
    str_addz(out, "</dl>\n<pre>factorllm run ");
    html_text(out, path.text);
    str_addz(out, "/spec.yaml</pre>\n");
    str_free(&path);
    return s;
}

/* ---- the first sentences ---- */

static void say_kept(struct str *out, const struct report_variant *v)
{
    str_addz(out, "<b>");
    html_number(out, 100 * v->kept.value, 1);
    str_addz(out, " %</b> of the dense model\xe2\x80\x99s next-token accuracy at ");
    html_number(out, v->times.value, 2);
    str_addz(out, " times its perplexity");
}

static void say_eval(struct report *r, const struct report_run *run, const struct report_eval *x, bool several)
{
    const struct report_variant *router = NULL, *fixed = report_eval_find(x, "static");
    struct str *out = &r->lead;

    for (int i = 0; i < x->n && !router; i++)
        if (!strncmp(x->v[i].name, "router", 6)) router = &x->v[i];
    if (!router || !isfinite(router->kept.value)) return;
    str_addz(out, "<p class=\"lead\">");
    if (several) {
        html_text(out, run->label);
        str_addz(out, ": with ");
    } else str_addz(out, "With ");
    html_number(out, 100 * router->share, 1);
    str_addz(out, " % of the FFN\xe2\x80\x99s neurons active for a token, the router keeps ");
    say_kept(out, router);
    if (fixed && isfinite(fixed->kept.value)) {
        str_addz(out, "; the same neurons for every token would keep ");
        html_number(out, 100 * fixed->kept.value, 1);
        str_addz(out, " % at ");
        html_number(out, fixed->times.value, 2);
    }
    str_addz(out, ".</p>\n");
}

static status say_all(struct report *r, struct err *e)
{
    enum { SENTENCES = 3 };
    struct report_eval *x = malloc(sizeof(*x));
    int evals = 0;
    status s = OK;

    BUG_ON(!x);
    for (int i = 0; i < r->n; i++) evals += r->run[i].kind == JOB_EVAL && r->run[i].row < 0;
    for (int i = 0, said = 0; i < r->n && said < SENTENCES && !s; i++) {
        if (r->run[i].kind != JOB_EVAL || r->run[i].row >= 0) continue;
        said++;
        s = report_eval_read(x, &r->run[i], e);
        if (!s) say_eval(r, &r->run[i], x, evals > 1);
    }
    free(x);
    return s;
}

status report_runs(struct report *r, struct err *e)
{
    bool open = false;

    if (say_all(r, e)) return e->code;
    for (int i = 0; i < r->n; i++) {
        if (r->run[i].row >= 0 || !r->run[i].file) continue;
        if (!open)
            report_section(r, "runs", "What was done",
                           "The command repeats a run with every key as it was; it gives the same figures, but for times.");
        open = true;
        if (put_input(r, i, e)) return e->code;
    }
    if (open) report_section_end(r);
    return OK;
}
