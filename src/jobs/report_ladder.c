/* The ladder: a line per row of runs, with means and spreads over its seeds, side by side for every f. */
#include "jobs/report_ladder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

void spread_add(struct spread *s, double x)
{
    if (!isfinite(x)) return;
    s->low = s->n ? fmin(s->low, x) : x;
    s->high = s->n ? fmax(s->high, x) : x;
    s->n++;
    double beside = x - s->mean; /* Welford: nothing is lost however far from 0 the values are */
    s->mean += beside / s->n;
    s->squares += beside * (x - s->mean);
}

double spread_mean(const struct spread *s)
{
    return s->n ? s->mean : NAN;
}

double spread_deviation(const struct spread *s)
{
    return s->n < 2 ? NAN : sqrt(s->squares / (s->n - 1));
}

double student_quantile(double df)
{
    static const double least[] = {12.706, 4.303, 3.182, 2.776};
    enum { LEAST = sizeof(least) / sizeof(least[0]) };
    const double z = 1.959964;

    if (!(df > 1)) return least[0];
    if (df < LEAST) {
        int below = (int)df;

        double part =
            (1.0 / below - 1 / df) * below * (below + 1); /* it is nearly a straight line over 1 / df, bent downwards between */

        return least[below - 1] + part * (least[below] - least[below - 1]);
    }
    return z + (pow(z, 3) + z) / (4 * df) + (5 * pow(z, 5) + 16 * pow(z, 3) + 3 * z) / (96 * df * df) +
           (3 * pow(z, 7) + 19 * pow(z, 5) + 17 * pow(z, 3) - 15 * z) / (384 * pow(df, 3)); /* Abramowitz and Stegun 26.7.5 */
}

/* Without spread there is nothing to say how sure it is. */
static struct report_interval interval_of(double mean, double variance, double df)
{
    double half = variance > 0 ? student_quantile(df) * sqrt(variance) : NAN;

    return (struct report_interval){mean, mean - half, mean + half};
}

struct report_interval difference_interval(const struct spread *a, const struct spread *b)
{
    double mean = spread_mean(a) - spread_mean(b);

    if (a->n < 2 || b->n < 2) return (struct report_interval){mean, NAN, NAN};
    double va = pow(spread_deviation(a), 2) / a->n, vb = pow(spread_deviation(b), 2) / b->n, v = va + vb;

    return interval_of(mean, v, v * v / (va * va / (a->n - 1) + vb * vb / (b->n - 1)));
}

struct report_interval pairs_interval(const struct spread *differences)
{
    int n = differences->n;

    return interval_of(spread_mean(differences), pow(spread_deviation(differences), 2) / n, n - 1);
}

/* The only run like `x`: of its seed, on its text.  NULL: none, or several, which no seed tells apart. */
static const struct ladder_run *twin_of(const struct ladder_run *x, const struct ladder_run *list)
{
    const struct ladder_run *found = NULL;

    if (x->seed < 0 || !x->text) return NULL;
    for (; list; list = list->next) {
        if (list->seed != x->seed || !list->text || strcmp(list->text, x->text)) continue;
        if (found) return NULL;
        found = list;
    }
    return found;
}

bool ladder_pairs(struct spread *differences, const struct ladder_run *a, const struct ladder_run *b)
{
    *differences = (struct spread){0};
    for (const struct ladder_run *x = b; x; x = x->next)
        if (!twin_of(x, b) || !twin_of(x, a)) return false;
    for (const struct ladder_run *x = a; x; x = x->next) {
        const struct ladder_run *twin = twin_of(x, a) ? twin_of(x, b) : NULL;

        if (!twin) return false;
        spread_add(differences, x->nats - twin->nats);
    }
    return true;
}

struct report_interval ladder_gain(const struct ladder *l, int row, int column)
{
    struct spread differences;

    if (row < 1 || !l->line[row].part) return (struct report_interval){NAN, NAN, NAN};
    const struct ladder_cell *a = &l->line[row - 1].cell[column], *b = &l->line[row].cell[column];

    if (ladder_pairs(&differences, a->run, b->run)) return pairs_interval(&differences);
    return difference_interval(&a->x[LADDER_LOG_TIMES], &b->x[LADDER_LOG_TIMES]);
}

/* ---- gathering ---- */

/* What the evals at one f say of the ends of the gap, in nats a token; an eval without them borrows those of others on the same text. */
struct ends {
    const char *text; /* digest */
    double dense;
    int column;
    struct spread fixed, best;
};
struct gathering {
    struct report *r;
    struct ladder *l;
    struct ends *ends;
    int n_ends;
    struct ladder_run *runs; /* of all cells, borrowed by them */
    int n_runs;
};

int ladder_column(const struct ladder *l, double share)
{
    int best = 0;

    for (int c = 1; c < l->columns; c++)
        if (fabs(share - l->share[c]) < fabs(share - l->share[best])) best = c;
    return l->given && !(fabs(share - l->share[best]) <= LADDER_BESIDE) ? -1 : best;
}

static const struct report_variant *variant_of(const struct report_eval *x, const struct report_run *run)
{
    if (run->variant) return report_eval_find(x, run->variant);
    for (int i = 0; i < x->n; i++)
        if (!strncmp(x->v[i].name, "router", 6)) return &x->v[i];
    return NULL;
}

static status text_of(const char **digest, const struct report_run *run, struct err *e)
{
    const struct json_t *text;

    *digest = NULL;
    if (report_object(&text, run->o, "text", run->source, e)) return e->code;
    return report_word(digest, text, "digest", run->source, e);
}

static struct ends *ends_of(struct gathering *g, const char *text, double dense, int column)
{
    for (int i = 0; i < g->n_ends; i++)
        if (g->ends[i].column == column && fabs(g->ends[i].dense / dense - 1) < 1e-3 && !strcmp(g->ends[i].text, text))
            return &g->ends[i]; /* the dense model's figure has the rounding of the experts that make it up */
    return NULL;
}

/* Static and ceiling of an eval that has them. */
static status add_ends(struct gathering *g, const struct report_run *run, const struct report_eval *x, struct err *e)
{
    const struct report_variant *fixed = report_eval_find(x, "static"), *best = report_eval_find(x, "neurons");
    const char *text;

    if (text_of(&text, run, e)) return e->code;
    if (!text || !x->dense || !(fixed || best)) return OK;
    int column = ladder_column(g->l, fixed ? fixed->share : best->share);
    if (column < 0) return OK;
    struct ends *to = ends_of(g, text, x->dense->perplexity, column);
    if (!to) {
        to = &g->ends[g->n_ends++];
        *to = (struct ends){.text = text, .dense = x->dense->perplexity, .column = column};
    }
    if (fixed) spread_add(&to->fixed, log(fixed->perplexity));
    if (best) spread_add(&to->best, log(best->perplexity));
    return OK;
}

static double closed(struct gathering *g, const char *text, const struct report_eval *x, const struct report_variant *v,
                     int column)
{
    if (isfinite(v->closed.value) || !g->l->given || !text || !x->dense) return v->closed.value;
    const struct ends *of = ends_of(g, text, x->dense->perplexity, column);
    double way = of ? spread_mean(&of->fixed) - spread_mean(&of->best) : NAN;

    return way > 0 ? (spread_mean(&of->fixed) - log(v->perplexity)) / way : NAN;
}

static void add_figures(struct ladder_cell *to, const struct report_eval *x, const struct report_variant *v, double gap)
{
    const struct report_variant *fixed = report_eval_find(x, "static"), *best = report_eval_find(x, "neurons");
    const double figures[LADDER_FIGURES] = {
        [LADDER_SHARE] = 100 * v->share,
        [LADDER_COST] = 100 * v->overhead,
        [LADDER_TIMES] = v->times.value,
        [LADDER_LOG_TIMES] = log(v->times.value),
        [LADDER_LOW] = v->times.low,
        [LADDER_HIGH] = v->times.high,
        [LADDER_KEPT] = 100 * v->kept.value,
        [LADDER_CLOSED] = 100 * gap,
        [LADDER_KL] = v->kl.value,
        [LADDER_PAIRS] = 100 * v->pairs.value,
        [LADDER_CHOICES] = 100 * v->choices.value,
        [LADDER_STATIC_KEPT] = NAN,
        [LADDER_CEILING_KEPT] = NAN,
    };

    if (!best) best = report_eval_find(x, "oracle");
    for (int f = 0; f < LADDER_FIGURES; f++) spread_add(&to->x[f], figures[f]);
    if (fixed) spread_add(&to->x[LADDER_STATIC_KEPT], 100 * fixed->kept.value);
    if (best) spread_add(&to->x[LADDER_CEILING_KEPT], 100 * best->kept.value);
    to->runs++;
}

/* As its job's resolved spec has it: the results do not.  -1: it cannot be read. */
static int64_t seed_of(const struct report_run *run)
{
    char *path = str_join(run->directory, "spec.yaml");
    struct spec *s = NULL;
    struct err ignored;
    int64_t seed = file_exists(path) && !spec_load(&s, path, NULL, 0, &ignored) ? s->seed : -1;

    spec_free(s);
    free(path);
    return seed;
}

static void add_to_pair(struct gathering *g, struct ladder_cell *to, const struct report_run *run, const char *text, double nats)
{
    if (!isfinite(nats)) return;
    struct ladder_run *x = &g->runs[g->n_runs++];

    *x = (struct ladder_run){.seed = seed_of(run), .text = text, .nats = nats, .next = to->run};
    to->run = x;
}

/* first: only the ends of the gap are gathered. */
static status add_run(struct gathering *g, struct ladder_line *line, const struct report_run *run, bool first, struct err *e)
{
    struct report_eval *x = malloc(sizeof(*x));
    const struct report_variant *v = NULL;
    const char *text = NULL;

    BUG_ON(!x);
    status s = report_eval_read(x, run, e);
    if (!s && first) {
        s = add_ends(g, run, x, e);
        goto out;
    }
    if (!s) s = text_of(&text, run, e);
    if (!s) v = variant_of(x, run);
    if (!s && !v)
        report_missing(g->r, "%s: has no figure of %s, so it is not in the ladder", run->source,
                       run->variant ? run->variant : "a router");
    int column = v ? ladder_column(g->l, v->share) : -1;
    if (v && column < 0)
        report_missing(g->r, "%s: f of %s is %.1f %%, more than %g points beside all shares, so it is not in the ladder",
                       run->source, v->name, 100 * v->share, 100 * LADDER_BESIDE);
    if (column >= 0) {
        add_figures(&line->cell[column], x, v, closed(g, text, x, v, column));
        add_to_pair(g, &line->cell[column], run, text, log(v->times.value));
        if (!line->variant) line->variant = v->name;
    }
out:
    free(x);
    return s;
}

static status gather(struct gathering *g, struct err *e)
{
    struct report *r = g->r;

    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < r->n; i++) {
            const struct report_run *run = &r->run[i];
            int at = r->rows > 0 ? run->row : run->input;

            if (run->kind != JOB_EVAL || at < 0) continue;
            g->l->line[at].label = run->label;
            g->l->line[at].part = run->row >= 0 && run->label[0] == '+';
            if (add_run(g, &g->l->line[at], run, pass == 0, e)) return e->code;
        }
    return OK;
}

/* ---- the first sentences ---- */

static void say_column(struct str *out, const struct ladder *l, int c)
{
    const struct ladder_line *best = NULL, *fixed = NULL;

    for (int i = 0; i < l->rows; i++) {
        const struct ladder_line *line = &l->line[i];

        if (!line->variant || !line->cell[c].runs) continue;
        if (!strcmp(line->variant, "static")) fixed = line;
        if (strncmp(line->variant, "router", 6) != 0) continue;
        if (!best || spread_mean(&line->cell[c].x[LADDER_TIMES]) < spread_mean(&best->cell[c].x[LADDER_TIMES])) best = line;
    }
    if (!best) return;
    str_addz(out, "<p class=\"lead\">At f ");
    html_number(out, 100 * l->share[c], 1);
    str_addz(out, " %, \xe2\x80\x9c");
    html_text(out, best->label);
    str_addz(out, "\xe2\x80\x9d keeps <b>");
    html_number(out, spread_mean(&best->cell[c].x[LADDER_KEPT]), 1);
    str_addz(out, " %</b> of the dense model\xe2\x80\x99s next-token accuracy at ");
    html_number(out, spread_mean(&best->cell[c].x[LADDER_TIMES]), 3);
    str_addz(out, " times its perplexity");
    if (fixed) {
        str_addz(out, "; the same neurons for every token keep ");
        html_number(out, spread_mean(&fixed->cell[c].x[LADDER_KEPT]), 1);
        str_addz(out, " % at ");
        html_number(out, spread_mean(&fixed->cell[c].x[LADDER_TIMES]), 2);
    }
    if (best->cell[c].runs > 1) str_addf(out, ". Means of %d runs", best->cell[c].runs);
    str_addz(out, ".</p>\n");
}

/* ---- the commands ---- */

/* The spec that repeats it: of a pipeline's step, that of the pipeline, which makes the model as well. */
static void spec_of(struct str *out, const struct report_run *run)
{
    const char *colon = strstr(run->source, "/result.json: ");
    struct str directory = {0}, path = {0};
    struct spec *s = NULL;
    struct err ignored;

    str_add(&directory, run->source, (size_t)(colon - run->source));
    str_clear(out);
    const char *slash = strrchr(directory.text, '/');
    if (slash) {
        str_add(&path, directory.text, (size_t)(slash - directory.text));
        str_addz(&path, "/spec.yaml");
    }
    if (slash && file_exists(path.text) && !spec_load(&s, path.text, NULL, 0, &ignored))
        for (int i = 0; i < s->n_steps; i++)
            if (!strcmp(s->steps[i].output, directory.text)) str_addz(out, path.text);
    if (!out->length) str_addf(out, "%s/spec.yaml", directory.text);
    spec_free(s);
    str_free(&directory);
    str_free(&path);
}

/* What the first of them is made of, as its author wrote it: the keys behind every row. */
static void put_source(struct str *out, const struct report_run *run)
{
    enum { MOST = 1 << 16 };
    const char *source = NULL;
    char *text = NULL;
    size_t length = 0;
    struct err ignored;

    if (!run->json || report_word(&source, run->json, "spec", run->source, &ignored) || !source || !file_exists(source)) return;
    if (file_read(&text, &length, source, MOST, &ignored) == OK && strlen(text) == length) {
        str_addz(out, "<details><summary>The first of them, ");
        html_text(out, source);
        str_addz(out, "</summary>\n<pre>");
        html_text(out, text);
        str_addz(out, "</pre></details>\n");
    }
    free(text);
}

static void put_commands(struct str *out, const struct report *r)
{
    struct str path = {0}, lines = {0}, key = {0};
    const struct report_run *first = NULL;

    str_addz(&lines, "\n");
    for (int i = 0; i < r->n; i++) {
        if (r->run[i].row < 0 || !r->run[i].file) continue;
        spec_of(&path, &r->run[i]);
        str_clear(&key);
        str_addf(&key, "\n%s\n", path.text);
        if (strstr(lines.text, key.text)) continue; /* several rows come from one pipeline */
        str_addz(&lines, path.text);
        str_addz(&lines, "\n");
        if (!first) first = &r->run[i];
    }
    if (first) {
        str_addz(out, "<details><summary>The commands that repeat them</summary>\n<pre>");
        for (const char *at = lines.text + 1; *at; at = strchr(at, '\n') + 1) {
            str_clear(&path);
            str_add(&path, at, strcspn(at, "\n"));
            str_addz(out, "factorllm run ");
            html_text(out, path.text);
            str_addz(out, "\n");
        }
        str_addz(out, "</pre></details>\n");
        put_source(out, first);
    }
    str_free(&path);
    str_free(&lines);
    str_free(&key);
}

/* ---- the section ---- */

static status write_text(const struct report *r, const struct ladder *l, struct err *e)
{
    char *path = str_join(r->job->spec->output, "ladder.md");
    struct str text = {0};

    ladder_put_markdown(&text, l);
    status s = file_write(path, text.text, text.length, e);
    str_free(&text);
    free(path);
    return s;
}

static status show(struct report *r, struct ladder *l, struct err *e)
{
    if (l->rows < (r->rows > 0 ? 1 : 2)) return OK;
    for (int c = 0; l->given && c < l->columns; c++) say_column(&r->lead, l, c);
    report_section(r, "ladder", "The ladder",
                   "One row, one way to factorize; a row with several runs differs in their seeds alone, and has its mean and "
                   "standard deviation. A row that begins with + is the row above with one part more, and says what the part "
                   "brings.");
    ladder_put_tables(&r->body, l);
    ladder_put_drawing(&r->body, l);
    if (r->rows > 0) put_commands(&r->body, r);
    report_section_end(r);
    return write_text(r, l, e);
}

status report_ladder(struct report *r, struct err *e)
{
    const struct spec_list *shares = &r->job->spec->report.shares;
    int most = r->rows > 0 ? r->rows : r->inputs;
    struct ladder l = {
        .columns = shares->n > 0 ? shares->n : 1, .given = shares->n > 0, .line = calloc((size_t)most + 1, sizeof(*l.line))};
    struct gathering g = {
        .r = r, .l = &l, .ends = calloc((size_t)r->n + 1, sizeof(*g.ends)), .runs = calloc((size_t)r->n + 1, sizeof(*g.runs))};

    BUG_ON(!l.line || !g.ends || !g.runs);
    for (int c = 0; c < shares->n; c++) l.share[c] = strtod(shares->items[c], NULL);
    status s = gather(&g, e);
    for (int i = 0; i < most; i++)
        if (l.line[i].variant) l.line[l.rows++] = l.line[i];
    if (!s) s = show(r, &l, e);
    free(l.line);
    free(g.ends);
    free(g.runs);
    return s;
}
