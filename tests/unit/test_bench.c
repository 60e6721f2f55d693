/* The pure parts of the bench job and of the timing block: figures, rows, bounds, sections. */
#include "../check.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "jobs/bench.h"
#include "jobs/bench_model.h"
#include "jobs/bench_product.h"
#include "jobs/timing_report.h"

static void test_figures(void **state)
{
    (void)state;
    const double odd[] = {5, 1, 4}, even[] = {4, 1, 3, 10}, one[] = {7};
    struct bench_figure f = bench_figure(odd, 3);

    assert_true(f.median == 4 && f.least == 1 && f.most == 5 && f.rounds == 3);
    assert_true(odd[0] == 5); /* not sorted in place */
    f = bench_figure(even, 4);
    assert_true(f.median == 3.5 && f.least == 1 && f.most == 10);
    assert_true(bench_figure(one, 1).median == 7);
    struct bench_figure two = {.median = 2, .rounds = 3}, none = {0}, zero = {.rounds = 3};
    assert_true(bench_ratio(&f, &two) == 1.75);
    assert_true(isnan(bench_ratio(&f, &none)));
    assert_true(isnan(bench_ratio(&none, &f)));
    assert_true(isnan(bench_ratio(&f, &zero)));
}

static int columns(const char *line)
{
    int n = 1;
    bool quoted = false;

    for (; *line && *line != '\n'; line++) {
        if (*line == '"') quoted = !quoted;
        n += *line == ',' && !quoted;
    }
    return n;
}

static void test_rows(void **state)
{
    (void)state;
    struct bench_place p = {"2026-01-02T03:04:05Z", "abc", "A \"fast\" one, two", "avx2", "0-1", 2, 3};
    struct bench_row r = bench_row(PART_STEP, "decode", "e4");
    struct str header = {0}, line = {0}, json = {0};
    const double sample[] = {1.5, 2.5, 2};
    struct json_t *o;
    struct err e;

    r.figure = bench_figure(sample, 3);
    r.rows = 8;
    snprintf(r.unit, sizeof(r.unit), "tokens/s");
    r.ratio = 1.25;
    snprintf(r.of, sizeof(r.of), "dense");
    bench_csv_header(&header);
    bench_csv_row(&line, &p, &r);
    assert_int_equal(columns(header.text), columns(line.text));
    assert_non_null(strstr(line.text, "\"A \"\"fast\"\" one, two\""));
    assert_non_null(strstr(line.text, ",step,decode,e4,,,8,,tokens/s,3,2,1.5,2.5,1.25,dense,,\n"));

    bench_json_row(&json, &p, &r, sample);
    assert_int_equal(json.text[json.length - 1], '\n');
    assert_int_equal(json_parse(&o, json.text, json.length, "row", &e), OK);
    assert_string_equal(json_text(json_at(o, "commit")), "abc");
    assert_string_equal(json_text(json_at(o, "part")), "step");
    assert_true(json_number(json_at(o, "median")) == 2);
    assert_int_equal(json_length(json_at(o, "samples")), 3);
    assert_true(json_number(json_at(o, "ratio")) == 1.25);
    assert_null(json_at(o, "bound")); /* there is none */
    json_free(o);
    str_free(&header);
    str_free(&line);
    str_free(&json);
}

static void test_binding(void **state)
{
    (void)state;
    char out[BENCH_TEXT];
    cpu_set_t mask;

    CPU_ZERO(&mask);
    bench_binding(out, &mask, CPU_SETSIZE);
    assert_string_equal(out, "");
    for (int i = 0; i < 4; i++) CPU_SET(i, &mask);
    CPU_SET(7, &mask);
    CPU_SET(1023, &mask);
    bench_binding(out, &mask, CPU_SETSIZE);
    assert_string_equal(out, "0-3,7,1023");
    CPU_ZERO(&mask);
    for (int i = 0; i < 1024; i += 2) CPU_SET(i, &mask);
    bench_binding(out, &mask, CPU_SETSIZE);
    assert_true(strlen(out) < sizeof(out));
    assert_string_equal(out + strlen(out) - 4, ",...");
}

static const struct shape tinyllama = {
    .layers = 22, .width = 2048, .neurons = 5632, .heads = 32, .kv_heads = 4, .head_dim = 64, .vocab = 32000};

static void test_bounds(void **state)
{
    (void)state;
    enum format bf16[WEIGHT_PARTS] = {FORMAT_BF16, FORMAT_BF16, FORMAT_BF16},
                q8[WEIGHT_PARTS] = {FORMAT_Q8, FORMAT_Q8, FORMAT_Q8};

    assert_true(bench_format_bytes(FORMAT_F32) == 4 && bench_format_bytes(FORMAT_BF16) == 2);
    assert_true(bench_format_bytes(FORMAT_Q8) == 1.0625 && bench_format_bytes(FORMAT_Q4) == 0.5625);
    /* 2.07 GB a token, 1.31 with half of the FFNs: a gain of 1.58; 2.2 with a quarter */
    assert_true(fabs(bench_step_bytes(&tinyllama, bf16, 1) / 2.07e9 - 1) < 0.005);
    assert_true(fabs(bench_step_bytes(&tinyllama, bf16, 0.5) / 1.31e9 - 1) < 0.01);
    assert_true(fabs(bench_step_bytes(&tinyllama, bf16, 1) / bench_step_bytes(&tinyllama, bf16, 0.5) - 1.58) < 0.01);
    assert_true(fabs(bench_step_bytes(&tinyllama, bf16, 1) / bench_step_bytes(&tinyllama, bf16, 0.25) - 2.23) < 0.02);
    assert_true(fabs(bench_step_bytes(&tinyllama, q8, 1) / bench_step_bytes(&tinyllama, bf16, 1) - 1.0625 / 2) < 1e-9);
    /* a prompt of one token: twice its weights, and the scores of one position with itself */
    double one = bench_prefill_flops(&tinyllama, 1, 1);
    assert_true(fabs(one / (2 * 1.034e9) - 1) < 0.005);
    assert_true(bench_prefill_flops(&tinyllama, 1, 512) < 512 * one && bench_prefill_flops(&tinyllama, 1, 512) > 440 * one);
    /* 21 layers for all rows, of the last one their keys and values, and all else for one row */
    double kv = 2 * 2048.0 * 256, layer = 2 * 2048.0 * 2048 + kv + 3 * 2048.0 * 5632, seen = 512 * 513 / 2;
    double want = 2 * (512 * (21 * layer + kv) + layer - kv + 32000 * 2048.0) + 4 * 2048 * (21 * seen + 512);
    assert_true(fabs(bench_prefill_flops(&tinyllama, 1, 512) / want - 1) < 1e-12);
    assert_true(fabs(bench_touched(4, 2, 1) - 0.5) < 1e-12);
    assert_true(fabs(bench_touched(4, 1, 2) - 0.4375) < 1e-12);
    assert_true(bench_touched(352, 176, 32) > 0.999999);
}

static void test_sections(void **state)
{
    (void)state;
    struct timing t[2];

    timing_start(&t[0], 0);
    assert_int_equal(timing_enter(&t[0], TIME_EXPERT), TIME_OTHER);
    clock_sleep(0.002);
    enum timing_section was = timing_enter(&t[0], TIME_WAIT); /* inside the experts */
    assert_int_equal(was, TIME_EXPERT);
    timing_product(&t[0], 100, 3, 10, 20);
    clock_sleep(0.002);
    timing_enter(&t[0], was);
    timing_step(&t[0], 3, 1);
    timing_stop(&t[0]);
    assert_true(timing_seconds(&t[0], TIME_EXPERT) >= 0.002 && timing_seconds(&t[0], TIME_WAIT) >= 0.002);
    assert_true(t[0].bytes[TIME_WAIT] == 100 && t[0].flops[TIME_WAIT] == 2 * 3 * 10 * 20);
    assert_true(t[0].steps == 1 && t[0].rows == 3 && t[0].tokens == 1 && t[0].memory_bytes > 0);
    int64_t sum = 0;
    for (int s = 0; s < TIMING_SECTIONS; s++) sum += t[0].ns[s];
    assert_true(fabs(1e-9 * (double)sum - timing_total(&t[0])) < 1e-12); /* no moment twice, none lost */

    t[1] = t[0];
    t[1].ns[TIME_EXPERT] *= 3;
    struct timing_spread x;
    timing_spread(&x, t, 2, TIME_EXPERT);
    assert_true(fabs(x.least - timing_seconds(&t[0], TIME_EXPERT)) < 1e-12 && fabs(x.most - 3 * x.least) < 1e-12);
    assert_true(fabs(x.mean - 2 * x.least) < 1e-12 && x.share > 0 && x.share < 1);
    struct probe machine = {0};
    struct json_t *o = timing_json(t, 2, &machine);
    assert_int_equal(json_length(json_at(o, "sections")), TIMING_SECTIONS);
    assert_int_equal(json_length(json_at(o, "ranks")), 2);
    assert_null(json_at(o, "machine")); /* not measured */
    json_free(o);

    timing_start(&t[0], 1);
    assert_true(t[0].rank == 1 && t[0].ns[TIME_EXPERT] == 0);
    assert_int_equal(t[0].now, TIME_EXPERT); /* goes on */
    assert_int_equal(timing_enter(NULL, TIME_WAIT), TIME_OTHER);
    timing_work(NULL, 1, 1);
    timing_step(NULL, 1, 1);
}

static void test_shapes(void **state)
{
    (void)state;
    struct bench_shape s;
    struct err e;

    assert_int_equal(bench_shape_parse(&s, "tinyllama", &e), OK);
    assert_true(s.width == 2048 && s.neurons == 5632 && s.layers == 22 && s.dtype == DT_BF16 && !s.tied);
    assert_int_equal(bench_shape_parameters(&s), 1100048384); /* what the original has */
    assert_int_equal(bench_shape_parse(&s, "quillan,layers=2,dtype=f32,tied=0", &e), OK);
    assert_true(s.width == 256 && s.layers == 2 && s.dtype == DT_F32 && !s.tied);
    static const char *const wrong[] = {"nothing",  "width=x",    "width=-4", "layers=0", "dtype=q8",
                                        "heads=33", "kv_heads=5", "tied=2",   "vocab=10", "width=2048,nothing"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) assert_int_equal(bench_shape_parse(&s, wrong[i], &e), ERR_SPEC);
}

static void test_products(void **state)
{
    (void)state;
    struct bench_operands o;
    struct bench_product *p;
    struct gemm *g;
    struct err e;

    assert_int_equal(gemm_open(&g, 1, isa_best(), &e), OK);
    assert_int_equal(bench_operands_open(&o, 3, 40, 96, &e), OK);
    for (enum format f = FORMAT_F32; f < FORMAT_COUNT; f++) {
        assert_int_equal(bench_product_ours(&p, g, &o, f, &e), OK);
        assert_int_equal(bench_product_check(p, &e), OK);
        assert_true(bench_product_time(p, 0) > 0);
        int outputs = 0;
        assert_true(bench_product_cached(p, 0, &outputs) > 0 && outputs == 40); /* so few are all */
        assert_int_equal(bench_product_check(p, &e), OK);                       /* and it is as before */
        assert_true(bench_product_bytes(p) >= 40 * 96 * bench_format_bytes(f));
        for (int i = 0; i < 40 * 96; i++) o.w[i] = -o.w[i]; /* the weights are not what the product was made of */
        assert_int_equal(bench_product_check(p, &e), ERR_GATE);
        for (int i = 0; i < 40 * 96; i++) o.w[i] = -o.w[i];
        bench_product_close(p);
    }
    bench_operands_close(&o);
    gemm_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),  cmocka_unit_test(test_rows),     cmocka_unit_test(test_binding),
        cmocka_unit_test(test_bounds),   cmocka_unit_test(test_sections), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_products),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
