/* The pure parts of the report: escaping, numbers, ticks, shades, rows of the ladder. */
#include "../check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report.h"
#include "jobs/report_ladder.h"

static struct str out;

static void expect(const char *text)
{
    assert_string_equal(out.text, text);
    str_clear(&out);
}

static void number(double x, int decimals, const char *text)
{
    html_number(&out, x, decimals);
    expect(text);
}

#define MINUS "\xe2\x88\x92"
#define THIN  "\xe2\x80\xaf"
#define DASH  "\xe2\x80\x93"

static void test_text(void **state)
{
    (void)state;
    html_text(&out, "<script>alert(\"1\" & '2')</script>\x01\x7f");
    expect("&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;\xef\xbf\xbd\xef\xbf\xbd");
    html_text(&out, "caf\xc3\xa9 \xe2\x80\x93 ok\n");
    expect("caf\xc3\xa9 \xe2\x80\x93 ok\n");
}

static void test_numbers(void **state)
{
    (void)state;
    number(1.005, 1, "1.0");
    number(-0.25, 2, MINUS "0.25");
    number(-0.004, 2, "0.00"); /* no minus in front of a zero */
    number(NAN, 3, DASH);
    number(INFINITY, 1, "\xe2\x88\x9e");
    number(-INFINITY, 1, MINUS "\xe2\x88\x9e");
    number(999, 0, "999");
    number(9999, 0, "9999");
    number(12345.678, 1, "12" THIN "345.7");
    number(1234567, 0, "1" THIN "234" THIN "567");
    number(1e300, 0, "1e+300");
    html_signed(&out, 0.5, 1);
    expect("+0.5");
    html_signed(&out, 0.04, 1);
    expect("0.0");
    html_signed(&out, -3, 0);
    expect(MINUS "3");
    html_human(&out, 999);
    expect("999");
    html_human(&out, 5770496);
    expect("5.77" THIN "M");
    html_human(&out, 12160);
    expect("12.2" THIN "k");
    html_human(&out, 999600);
    expect("1.00" THIN "M");
    html_human(&out, 0);
    expect("0");
}

/* Cells of one column have one number of decimals and the same place, with or without a figure. */
static void test_table(void **state)
{
    (void)state;
    const struct html_column columns[] = {{"<name>", NULL, true}, {"x", "a \"tip\"", false}};

    table_open(&out, columns, 2, NULL);
    assert_non_null(
        strstr(out.text, "<th scope=\"col\" class=\"t\">&lt;name&gt;</th><th scope=\"col\" title=\"a &quot;tip&quot;\">x</th>"));
    str_clear(&out);
    table_row(&out, "strong");
    table_head(&out, "a<b");
    table_number(&out, 1.5, 2, NULL);
    table_number(&out, NAN, 2, "%");
    table_signed(&out, -1, 1);
    table_text(&out, "");
    table_row_end(&out);
    expect("<tr class=\"strong\"><th scope=\"row\">a&lt;b</th><td>1.50</td><td class=\"none\">" DASH "</td><td>" MINUS
           "1.0</td><td class=\"t\">" DASH "</td></tr>\n");
}

static void ticks(double low, double high, int about, int n, double first, double last, int decimals)
{
    struct svg_ticks t;

    svg_ticks(&t, low, high, about);
    if (t.n != n || fabs(t.at[0] - first) > 1e-9 || fabs(t.at[t.n - 1] - last) > 1e-9 || t.decimals != decimals)
        print_error("%g..%g: %d ticks from %g to %g, %d decimals\n", low, high, t.n, t.at[0], t.at[t.n ? t.n - 1 : 0],
                    t.decimals);
    assert_true(t.n == n && fabs(t.at[0] - first) < 1e-9 && fabs(t.at[t.n - 1] - last) < 1e-9 && t.decimals == decimals);
}

static void test_ticks(void **state)
{
    (void)state;
    ticks(0, 100, 5, 6, 0, 100, 0);
    ticks(0.21, 0.81, 5, 6, 0.3, 0.8, 1);
}

static void test_ticks_more(void **state)
{
    (void)state;
    struct svg_ticks t;
    double low = 5, high = 5;

    ticks(-1, 1, 4, 5, -1, 1, 1);
    ticks(0, 12160, 6, 7, 0, 12000, 0);
    ticks(1.48, 1.52, 4, 5, 1.48, 1.52, 2);
    svg_ticks(&t, 3, 3, 5);
    assert_int_equal(t.n, 0);
    svg_ticks(&t, 0, INFINITY, 5);
    assert_int_equal(t.n, 0);
    for (double span = 1e-9; span < 1e12; span *= 1.7) /* never more than there is room for, always inside */
        for (int about = 1; about < 12; about++) {
            svg_ticks(&t, -span / 3, span, about);
            assert_true(t.n >= 1 && t.n <= SVG_TICKS_MAX && t.n <= 2 * about + 2);
            for (int i = 0; i < t.n; i++) assert_true(t.at[i] >= -span / 3 - 1e-6 * span && t.at[i] <= span * (1 + 1e-6));
        }
    svg_ticks_log(&t, 0.9, 25);
    assert_int_equal(t.n, 5); /* 1 2 5 10 20 */
    assert_true(t.at[0] == 1 && t.at[4] == 20 && t.decimals == 0);
    svg_ticks_log(&t, 1, 2);
    assert_true(t.n >= 4);
    svg_ticks_log(&t, 1e-6, 1e12);
    assert_true(t.n <= SVG_TICKS_MAX && t.n >= 10);
    svg_ticks_log(&t, 0, 1);
    assert_int_equal(t.n, 0);
    svg_widen(&low, &high, 0);
    assert_true(low < 5 && high > 5);
    low = 0.01;
    high = 1;
    svg_widen(&low, &high, 0);
    assert_true(low == 0 && high > 1);
}

static void test_places(void **state)
{
    (void)state;
    struct svg_plot p = {.out = &out, .width = 460, .height = 270};

    p.x = (struct svg_axis){.low = 0, .high = 10, .label = "tokens <seen>"};
    p.y = (struct svg_axis){.low = 1, .high = 100, .log = true, .label = "y"};
    svg_plot_open(&p, "a \"title\"");
    assert_true(fabs(svg_x(&p, 0) - p.left) < 1e-9 && fabs(svg_x(&p, 10) - p.right) < 1e-9);
    assert_true(fabs(svg_x(&p, 5) - (p.left + p.right) / 2) < 1e-9);
    assert_true(fabs(svg_y(&p, 10) - (p.top + p.bottom) / 2) < 1e-9); /* the middle of two decades */
    assert_true(svg_y(&p, 1) > svg_y(&p, 100));
    assert_true(svg_x(&p, 99) == p.right && svg_x(&p, -99) == p.left); /* outside: at the edge */
    assert_non_null(strstr(out.text, "aria-label=\"a &quot;title&quot;\""));
    assert_non_null(strstr(out.text, "tokens &lt;seen&gt;"));
    assert_null(strstr(out.text, "nan"));
    str_clear(&out);
    svg_mark(&out, 1, 2, 3, "<tip>");
    assert_non_null(strstr(out.text, "class=\"mark k3\" transform=\"translate(1.0 2.0)\""));
    assert_non_null(strstr(out.text, "<title>&lt;tip&gt;</title>"));
    str_clear(&out);
}

static void test_shades(void **state)
{
    (void)state;
    assert_int_equal(svg_shade_ratio(1), SVG_SHADES / 2);
    assert_int_equal(svg_shade_ratio(0), 0);
    assert_int_equal(svg_shade_ratio(NAN), 0);
    assert_int_equal(svg_shade_ratio(2), SVG_SHADES / 2 + 2);
    assert_int_equal(svg_shade_ratio(0.5), SVG_SHADES / 2 - 2);
    assert_int_equal(svg_shade_ratio(1000), SVG_SHADES - 1);
    assert_int_equal(svg_shade(0, 1), 0);
    assert_int_equal(svg_shade(1, 1), SVG_SHADES - 1);
    assert_int_equal(svg_shade(1, 0), 0);
}

/* Tables of Student's t; two samples of variances 1 and 13: df = (14/3)^2 / ((1/3)^2 / 2 + (13/3)^2 / 2) = 2.31, for which t is 3.80. */
static void test_difference(void **state)
{
    static const double table[][2] = {{1, 12.706}, {2, 4.303},  {3, 3.182},  {4, 2.776},  {5, 2.571},
                                      {7, 2.365},  {10, 2.228}, {30, 2.042}, {1e6, 1.960}};
    struct spread a = {0}, b = {0}, one = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        assert_true(fabs(student_quantile(table[i][0]) / table[i][1] - 1) < 0.01);
    for (double df = 1; df < 6; df += 0.01) assert_true(student_quantile(df + 0.01) < student_quantile(df) + 1e-9);
    spread_add(&a, 2), spread_add(&a, 4), spread_add(&a, 9);
    spread_add(&b, 1), spread_add(&b, 2), spread_add(&b, 3);
    struct report_interval x = difference_interval(&a, &b);
    assert_true(x.value == 3);
    assert_true(fabs((x.high - x.low) / 2 / sqrt(14 / 3.0) - 3.80) < 0.1);
    assert_true(fabs(x.high + x.low - 6) < 1e-12);
    spread_add(&one, 7);
    x = difference_interval(&a, &one);
    assert_true(x.value == -2 && isnan(x.low) && isnan(x.high)); /* one seed has no spread */
    x = difference_interval(&b, &b);
    assert_true(x.low < 0 && x.high > 0);
    struct spread same = {0}, other = {0};
    for (int i = 0; i < 3; i++) spread_add(&same, 0.1), spread_add(&other, 0.3);
    x = difference_interval(&same, &other); /* nor have equal figures: no interval of no width */
    assert_true(fabs(x.value + 0.2) < 1e-15 && isnan(x.low) && isnan(x.high));
    assert_true(isfinite(difference_interval(&a, &same).low));
}

/* Far from 0 as near it: values and spreads that are exact in binary. */
static void test_spread(void **state)
{
    struct spread near = {0}, far = {0};

    (void)state;
    for (int i = 0; i < 4; i++) spread_add(&near, i * 0.25), spread_add(&far, 0x1p40 + i * 0.25);
    spread_add(&far, NAN), spread_add(&far, INFINITY);
    assert_int_equal(far.n, 4);
    assert_true(fabs(spread_deviation(&near) - sqrt(0.3125 / 3)) < 1e-15);
    assert_true(fabs(spread_deviation(&far) - spread_deviation(&near)) < 1e-4);
    assert_true(spread_mean(&far) == 0x1p40 + 0.375 && far.low == 0x1p40 && far.high == 0x1p40 + 0.75);
}

/* Rows of seeds 1, 2, 3 whose figures go up and down together: differences 1, 2, 3 have mean 2 and deviation 1, so 4.303 / sqrt(3) on either side. */
static void test_pairs(void **state)
{
    enum { N = 3 };
    static const double nats[2][N] = {{11, 52, 33}, {30, 10, 50}}; /* of seeds 1, 2, 3, and of 3, 1, 2 */
    static const int seeds[2][N] = {{1, 2, 3}, {3, 1, 2}};
    struct ladder_run run[2][N + 1];
    struct ladder_line line[2] = {{.label = "one"}, {.label = "+ two", .part = true}};
    struct ladder l = {.rows = 2, .columns = 1, .line = line};
    struct spread d;

    (void)state;
    for (int r = 0; r < 2; r++) {
        line[r].cell[0].run = run[r];
        for (int i = 0; i < N; i++) {
            run[r][i] = (struct ladder_run){seeds[r][i], "text", nats[r][i], i < N - 1 ? &run[r][i + 1] : NULL};
            spread_add(&line[r].cell[0].x[LADDER_LOG_TIMES], nats[r][i]);
        }
    }
    assert_true(ladder_pairs(&d, run[0], run[1]));
    assert_true(d.n == 3 && fabs(spread_mean(&d) - 2) < 1e-15 && fabs(spread_deviation(&d) - 1) < 1e-15);
    struct report_interval x = ladder_gain(&l, 1, 0), y = ladder_gain(&l, 0, 0);
    assert_true(fabs(x.value - 2) < 1e-12 && fabs(x.low - (2 - 4.303 / sqrt(3))) < 1e-12);
    assert_true(fabs(x.high - (2 + 4.303 / sqrt(3))) < 1e-12);
    assert_true(isnan(y.value));              /* no part */
    run[0][0].nats = 12, run[0][2].nats = 32; /* now 2, 2, 2: no spread */
    assert_true(ladder_pairs(&d, run[0], run[1]) && isnan(pairs_interval(&d).low) && pairs_interval(&d).value == 2);
    for (int how = 0; how < 6; how++) { /* not of one kind: two samples */
        struct ladder_run was = run[1][1], extra = {4, "text", 1, NULL};

        if (how == 0) run[1][1].seed = 2;  /* twice, and 1 not */
        if (how == 1) run[1][1].seed = 9;  /* another */
        if (how == 2) run[1][1].seed = -1; /* not known */
        if (how == 3) run[1][1].text = "another text";
        if (how == 4) run[1][1].text = NULL;
        if (how == 5) run[1][2].next = &extra; /* one more */
        assert_false(ladder_pairs(&d, run[0], run[1]));
        assert_false(ladder_pairs(&d, run[1], run[0]));
        x = ladder_gain(&l, 1, 0);
        assert_true(x.low < -10 && x.high > 10); /* Welch's: wide */
        run[1][1] = was;
        run[1][2].next = NULL;
    }
    assert_true(ladder_pairs(&d, run[0], run[1]));
}

/* A run stands in the column whose f it was measured at, give or take 0.03, or in none. */
static void test_columns(void **state)
{
    struct ladder l = {.columns = 2, .given = true, .share = {0.5, 0.25}};

    (void)state;
    assert_int_equal(ladder_column(&l, 0.5), 0);
    assert_int_equal(ladder_column(&l, 0.529), 0);
    assert_int_equal(ladder_column(&l, 0.471), 0);
    assert_int_equal(ladder_column(&l, 0.531), -1);
    assert_int_equal(ladder_column(&l, 0.469), -1);
    assert_int_equal(ladder_column(&l, 0.279), 1);
    assert_int_equal(ladder_column(&l, 0.281), -1);
    assert_int_equal(ladder_column(&l, 0.221), 1);
    assert_int_equal(ladder_column(&l, 0.219), -1);
    assert_int_equal(ladder_column(&l, NAN), -1);
    l.share[1] = 0.47; /* columns that are close: the nearer one */
    assert_int_equal(ladder_column(&l, 0.486), 0);
    assert_int_equal(ladder_column(&l, 0.484), 1);
    l.given = false, l.columns = 1; /* nobody asked for columns: one for all */
    assert_int_equal(ladder_column(&l, 0.9), 0);
}

static void test_rows(void **state)
{
    (void)state;
    char *label, *directory, *variant;

    report_row_parse(&label, &directory, &variant, "a b=runs/x=y#router@v1");
    assert_string_equal(label, "a b");
    assert_string_equal(directory, "runs/x=y");
    assert_string_equal(variant, "router@v1");
    free(label);
    free(directory);
    free(variant);
    report_row_parse(&label, &directory, &variant, "x=p");
    assert_string_equal(directory, "p");
    assert_null(variant);
    free(label);
    free(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),   cmocka_unit_test(test_numbers),    cmocka_unit_test(test_table),
        cmocka_unit_test(test_ticks),  cmocka_unit_test(test_ticks_more), cmocka_unit_test(test_places),
        cmocka_unit_test(test_shades), cmocka_unit_test(test_rows),       cmocka_unit_test(test_difference),
        cmocka_unit_test(test_spread), cmocka_unit_test(test_pairs),      cmocka_unit_test(test_columns),
    };
    int code = cmocka_run_group_tests(tests, NULL, NULL);

    str_free(&out);
    return code;
}
