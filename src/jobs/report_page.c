/* The frame of the page: its head with the style, its foot. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "jobs/report.h"

/* Colours of kinds after Okabe and Ito (told apart with any colour vision), darker on white and lighter on black so that each has a contrast of 3 and more; heat maps
 * go from one hue through grey to another (ratio), or from the ground to one hue (share). */
/* clang-format off */
static const char style[] =
    ":root{color-scheme:light dark;--bg:#fff;--ink:#1b1d21;--soft:#5a606b;--faint:#8d94a0;--rule:#d9dce2;--grid:#eceef1;--panel:#f7f8fa;--k0:#1b1d21;--k1:#0068b5;--k2:#00805d;--k3:#c2500a;--k4:#7c818b;--k5:#8a3ea8;--k6:#8c6a00;--k7:#00748f;--k8:#a3295a;--r0:#1b4f8f;--r1:#4a7fba;--r2:#86acd6;--r3:#bed2e8;--r4:#e6e7ea;--r5:#f3d3bd;--r6:#e5a681;--r7:#cf7442;--r8:#a4480f;--s0:#f1f2f5;--s1:#dde7f0;--s2:#c2d6e8;--s3:#a2c1dd;--s4:#7ea9cf;--s5:#5a8fbf;--s6:#3a74a9;--s7:#22598c;--s8:#123f6a}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#14161a;--ink:#e7e9ed;--soft:#a6adb9;--faint:#7b828e;--rule:#343943;--grid:#252932;--panel:#1b1e24;--k0:#e7e9ed;--k1:#5db1f2;--k2:#3fc79b;--k3:#f08a4b;--k4:#9aa1ad;--k5:#cd8ee6;--k6:#dcb44a;--k7:#52c3dc;--k8:#f07fae;--r0:#78b4f0;--r1:#558fca;--r2:#3f6b9a;--r3:#34495f;--r4:#2f333b;--r5:#5a4335;--r6:#8f5a37;--r7:#c97a43;--r8:#f6a46b;--s0:#22262d;--s1:#243342;--s2:#264058;--s3:#2a4f70;--s4:#336089;--s5:#4176a5;--s6:#5890c2;--s7:#7badda;--s8:#abd1f2}}\n"
    "*{box-sizing:border-box}\n"
    "html{-webkit-text-size-adjust:100%}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 Charter,'Bitstream Charter','Source Serif 4','Source Serif Pro','Iowan Old Style',Palatino,'Liberation Serif',Georgia,serif}\n"
    "main{max-width:1040px;margin:0 auto;padding:44px 24px 72px}\n"
    "h1{font-size:30px;line-height:1.2;font-weight:600;margin:0 0 10px;letter-spacing:-.01em;overflow-wrap:anywhere}\n"
    "h2{font-size:21px;line-height:1.3;font-weight:600;margin:52px 0 6px;padding-top:14px;border-top:1px solid var(--rule)}\n"
    "h3{font-size:16px;font-weight:600;margin:26px 0 6px;overflow-wrap:anywhere}\n"
    "p{margin:6px 0 12px;max-width:46em}\n"
    ".lead{font-size:18px;line-height:1.5}\n"
    ".note,figcaption,caption{color:var(--soft);font-size:14px;line-height:1.45}\n"
    "a{color:var(--k1);text-decoration-thickness:1px;text-underline-offset:2px}\n"
    "nav{font:14px/1.6 system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif;margin:14px 0 0}\n"
    "nav a{margin-right:18px;white-space:nowrap;display:inline-block}\n"
    "code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace}\n"
    "code{overflow-wrap:anywhere}\n"
    "pre{background:var(--panel);border:1px solid var(--rule);border-radius:4px;padding:10px 12px;overflow-x:auto;margin:8px 0 14px}\n"
    ".scroll{overflow-x:auto;margin:10px 0 16px}\n"
    "table{border-collapse:collapse;font:14px/1.4 system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif;font-variant-numeric:tabular-nums lining-nums;border-top:1.5px solid var(--ink);border-bottom:1.5px solid var(--ink)}\n"
    "caption{caption-side:top;text-align:left;padding:0 0 6px;font-family:inherit;white-space:normal}\n"
    "th,td{padding:4px 0 4px 20px;text-align:right;white-space:nowrap;vertical-align:baseline;font-weight:400}\n"
    "th:first-child,td:first-child{padding-left:0}\n"
    "tbody th,.t{text-align:left}\n"
    "thead th{border-bottom:1px solid var(--faint);color:var(--soft);font-size:13px;vertical-align:bottom}\n"
    "thead th[title]{cursor:help}\n"
    "thead th.g{text-align:center;color:var(--ink);font-weight:600;border-bottom:0}\n"
    "tbody tr+tr>*{border-top:1px solid var(--grid)}\n"
    "tr.strong>*{font-weight:600}\n"
    "tr.group>*{border-top:1px solid var(--faint)!important}\n"
    "td.none{color:var(--faint)}\n"
    "tbody td.ci{color:var(--soft);padding-left:8px;font-size:13px;font-weight:400}\n"
    ".tight th,.tight td{padding-left:11px;font-size:13px}\n"
    ".tight th:first-child{padding-left:0}\n"
    ".tight tbody td.ci{padding-left:5px;font-size:12px}\n"
    ".says b{color:var(--ink);font-weight:600}\n"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:18px 32px;align-items:start}\n"
    "figure{margin:12px 0 16px;min-width:0}\n"
    "figcaption{margin:4px 0 0}\n"
    "figcaption b{color:var(--ink);font-weight:600}\n"
    "svg{display:block}\n"
    "svg.plot{width:100%;height:auto;max-width:560px}\n"
    "svg text{font:12px system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}\n"
    "svg text.axis{fill:var(--ink)}\n"
    "svg text.name{fill:var(--ink)}\n"
    "svg text.value{fill:var(--ink);font-weight:600}\n"
    "path.grid{stroke:var(--grid);fill:none}\n"
    "path.frame{stroke:var(--faint);fill:none}\n"
    "path.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke:currentColor}\n"
    "path.thin{stroke-width:1.25}\n"
    "path.dash{stroke-dasharray:5 4}\n"
    "path.band{fill:currentColor;opacity:.16;stroke:none}\n"
    "path.whisker{fill:none;stroke:currentColor;stroke-width:1.6}\n"
    "path.even{stroke:var(--faint);stroke-dasharray:3 4;fill:none}\n"
    "path.mark{fill:currentColor;stroke:var(--bg);stroke-width:1}\n"
    "path.mark:hover{stroke:var(--ink);stroke-width:1.5}\n"
    ".k0{color:var(--k0);fill:var(--k0)}\n"
    ".k1{color:var(--k1);fill:var(--k1)}\n"
    ".k2{color:var(--k2);fill:var(--k2)}\n"
    ".k3{color:var(--k3);fill:var(--k3)}\n"
    ".k4{color:var(--k4);fill:var(--k4)}\n"
    ".k5{color:var(--k5);fill:var(--k5)}\n"
    ".k6{color:var(--k6);fill:var(--k6)}\n"
    ".k7{color:var(--k7);fill:var(--k7)}\n"
    ".k8{color:var(--k8);fill:var(--k8)}\n"
    "path.line,path.whisker{fill:none}\n"
    ".swatch{display:inline-block;width:12px;height:12px;vertical-align:-1px;margin-right:8px}\n"
    ".legend{font:13px/1.5 system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif;color:var(--soft);margin:2px 0 6px}\n"
    ".legend span{display:inline-block;margin-right:16px;overflow-wrap:anywhere}\n"
    ".legend .swatch{margin-right:6px}\n"
    ".ratio .h0{fill:var(--r0)}\n"
    ".ratio .h1{fill:var(--r1)}\n"
    ".ratio .h2{fill:var(--r2)}\n"
    ".ratio .h3{fill:var(--r3)}\n"
    ".ratio .h4{fill:var(--r4)}\n"
    ".ratio .h5{fill:var(--r5)}\n"
    ".ratio .h6{fill:var(--r6)}\n"
    ".ratio .h7{fill:var(--r7)}\n"
    ".ratio .h8{fill:var(--r8)}\n"
    ".share .h0{fill:var(--s0)}\n"
    ".share .h1{fill:var(--s1)}\n"
    ".share .h2{fill:var(--s2)}\n"
    ".share .h3{fill:var(--s3)}\n"
    ".share .h4{fill:var(--s4)}\n"
    ".share .h5{fill:var(--s5)}\n"
    ".share .h6{fill:var(--s6)}\n"
    ".share .h7{fill:var(--s7)}\n"
    ".share .h8{fill:var(--s8)}\n"
    "svg.heat rect:hover{stroke:var(--ink);stroke-width:1}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:8px 0 14px;font:14px/1.5 system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif}\n"
    "dt{color:var(--soft)}\n"
    "dd{margin:0;overflow-wrap:anywhere;min-width:0}\n"
    ".foot{margin-top:44px}\n"
    ".wide{min-width:600px}\n"
    ".wide svg.plot{max-width:760px}\n"
    "details{margin:10px 0}\n"
    "summary{cursor:pointer;color:var(--soft);font-size:14px}\n"
    "ul{margin:6px 0 12px;padding-left:22px;max-width:46em}\n"
    "li{overflow-wrap:anywhere}\n"
    "@media(max-width:560px){main{padding:26px 16px 48px}\n"
    "h1{font-size:25px}\n"
    "h2{margin-top:38px}\n"
    "dl{grid-template-columns:1fr;gap:0}\n"
    "dd{margin-bottom:6px}\n"
    "th,td{padding-left:14px}}\n"
    "@media print{body{font-size:11pt}\n"
    "main{max-width:none;padding:0}\n"
    "h2{break-after:avoid}\n"
    "figure,table{break-inside:avoid}\n"
    ".scroll{overflow:visible}}\n";
/* clang-format on */

void report_page(const struct report *r, struct str *out)
{
    const char *title = r->job->spec->report.title;

    str_addz(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    html_text(out, title ? title : "factorllm report");
    str_addz(out, "</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n");
    str_add(out, style, sizeof(style) - 1);
    str_addz(out, "</style></head>\n<body><main>\n<h1>");
    html_text(out, title ? title : "What was kept, and what it costs");
    str_addz(out, "</h1>\n");
    if (r->job->spec->report.about) {
        str_addz(out, "<p>");
        html_text(out, r->job->spec->report.about);
        str_addz(out, "</p>\n");
    }
    if (r->lead.length) str_add(out, r->lead.text, r->lead.length);
    if (r->nav.length) {
        str_addz(out, "<nav>");
        str_add(out, r->nav.text, r->nav.length);
        str_addz(out, "</nav>\n");
    }
    if (r->body.length) str_add(out, r->body.text, r->body.length);
    str_addz(out, "<p class=\"note foot\">Made by factorllm ");
    html_text(out, r->job->version);
    str_addz(out,
             " (<code>kind: report</code>); equal inputs give equal bytes. Marks, cells and heads of columns have tooltips.</p>\n"
             "</main></body></html>\n");
}

void report_section(struct report *r, const char *id, const char *title, const char *lead)
{
    str_addf(&r->nav, "<a href=\"#%s\">%s</a>", id, title);
    str_addf(&r->body, "<section id=\"%s\"><h2>%s</h2>\n", id, title);
    if (lead) str_addf(&r->body, "<p>%s</p>\n", lead);
}

void report_section_end(struct report *r)
{
    str_addz(&r->body, "</section>\n");
}

void report_heading(struct report *r, const struct report_run *run, bool step)
{
    int full = 0;

    for (int i = 0; i < r->n; i++)
        if (r->run[i].row < 0 && r->run[i].input > full) full = r->run[i].input;
    if (full == 0) return;
    str_addz(&r->body, "<h3>");
    html_text(&r->body, run->label);
    if (step && strcmp(run->name, run->label) != 0) {
        str_addz(&r->body, " <span class=\"note\">");
        html_text(&r->body, run->name);
        str_addz(&r->body, "</span>");
    }
    str_addz(&r->body, "</h3>\n");
}

void report_gaps(struct report *r)
{
    if (!r->missing.length) return;
    report_section(r, "missing", "What is not here", "Parts that the inputs do not have, and so are not shown.");
    str_addz(&r->body, "<ul>\n");
    str_add(&r->body, r->missing.text, r->missing.length);
    str_addz(&r->body, "</ul>\n");
    report_section_end(r);
}

void report_missing(struct report *r, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    str_addz(&r->missing, "<li>");
    html_text(&r->missing, text);
    str_addz(&r->missing, "</li>\n");
}
