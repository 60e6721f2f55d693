/* report: what jobs found, on one page of HTML. */
#include "jobs/report.h"

#include <stdlib.h>

#include "base/file.h"

static status write_page(const struct report *r, struct err *e)
{
    char *path = str_join(r->job->spec->output, "report.html");
    struct str page = {0};

    report_page(r, &page);
    status s = file_write(path, page.text, page.length, e);
    if (!s) {
        json_put_text(r->job->result, "page", path);
        json_put_int(r->job->result, "bytes", (int64_t)page.length);
        json_put_int(r->job->result, "inputs", r->inputs);
        json_put_int(r->job->result, "jobs", r->n);
        log_line(r->job->log, "the page: %s (%.1f KiB, %d jobs)", path, (double)page.length / 1024, r->n);
    }
    str_free(&page);
    free(path);
    return s;
}

status job_report(struct job *j, struct err *e)
{
    static status (*const sections[])(struct report * r, struct err * e) = {
        report_runs, report_controls, report_ladder, report_scatter, report_curves, report_routing, report_bench};
    struct report r = {.job = j};
    status s = report_read(&r, e);

    for (size_t i = 0; i < sizeof(sections) / sizeof(*sections) && !s; i++) {
        s = sections[i](&r, e);
        cluster_alive(j->cluster);
    }
    if (!s) {
        report_gaps(&r);
        s = write_page(&r, e);
    }
    report_free(&r);
    return s;
}
