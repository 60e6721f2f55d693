#!/bin/bash
# Draws what a bench job measured, with gnuplot:
#
#   scripts/plot_bench.sh OUTPUT [svg|png]
#
# OUTPUT/bench.csv -> OUTPUT/gain.svg       how many times faster than their dense model factorized ones decode, against the number of sequences
#                     OUTPUT/bandwidth.svg  share of the measured read bandwidth that is reached, by format: products of one row, and whole decodes
# The numbers behind a picture are left beside it as .dat files.  Without gnuplot only they are made.
set -eu
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1 type=${2:-svg} csv=$1/bench.csv
[ -r "$csv" ] || { echo "plot_bench: $csv: cannot be read; is $out the output of a bench job?" >&2; exit 3; }
case $type in svg | png) ;; *) echo "plot_bench: expected svg or png, found '$type'" >&2; exit 2 ;; esac

# Rows as fields between tabs: names of columns first, quotes taken off.
tabs() {
    awk '{
        line = ""; quoted = 0
        for (i = 1; i <= length($0); i++) {
            c = substr($0, i, 1)
            if (c == "\"") {
                if (quoted && substr($0, i + 1, 1) == "\"") { line = line c; i++ } else quoted = !quoted
            } else line = line (c == "," && !quoted ? "\t" : c)
        }
        print line
    }' "$csv"
}
# select COLUMNS... of the rows where the awk condition $1 holds; columns are known by their names
select_rows() {
    local condition=$1 print=
    shift
    for column in "$@"; do print="$print${print:+, }\$c[\"$column\"]"; done
    condition=$(echo "$condition" | sed -E 's/@([a-z_]+)/$c["\1"]/g')
    tabs | awk -F '\t' -v OFS='\t' "NR == 1 { for (i = 1; i <= NF; i++) c[\$i] = i; next } $condition { print $print }"
}

title=$(select_rows 'NR == 2' cpu isa ranks threads commit | awk -F '\t' '{ printf "%s, %s, %s rank(s) of %s thread(s), %s", $1, $2, $3, $4, $5 }')
# gain: a block of (sequences, ratio) for every factorized side, share and format
select_rows '@what == "decode" && @share < 1 && @ratio != ""' side format share rows ratio |
    sort -t "$(printf '\t')" -k1,1 -k3,3 -k4,4n |
    awk -F '\t' '{ key = $1 " f=" $3; if (key != last) { if (last != "") print "\n"; print "\"" key "\""; last = key } print $4, $5 }' >"$out/gain.dat"
select_rows '@what == "product" && @side == "ours" && @rows == 1' format shape bound | awk -F '\t' '{ print "\"" $1 " " $2 "\"", $3 }' >"$out/bandwidth.dat"
select_rows '@what == "decode bytes" && @rows == 1' side format share bound |
    awk -F '\t' '{ print "\"" $1 ($3 < 1 ? " f=" $3 : "") "\"", $4 }' >>"$out/bandwidth.dat"

for name in gain bandwidth; do
    [ -s "$out/$name.dat" ] || echo "plot_bench: $csv has nothing for $name: that part was not measured" >&2
done
if ! command -v gnuplot >/dev/null; then
    echo "plot_bench: gnuplot is not installed (Debian: apt-get install gnuplot-nox): no pictures; the numbers are in $out/*.dat" >&2
    exit 3
fi
case $type in
svg) terminal='svg size 900,560 dynamic background rgb "white"' ;;
png) terminal='pngcairo size 900,560' ;;
esac
if [ -s "$out/gain.dat" ]; then
    gnuplot <<PLOT
set terminal $terminal
set output "$out/gain.$type"
set title "Decoding: factorized over dense\n$title" noenhanced
set xlabel "sequences that decode together"
set ylabel "times the dense model's tokens/s"
set logscale x 2
set yrange [0:*]
set grid
set key outside right noenhanced
set arrow from graph 0, first 1 to graph 1, first 1 nohead dashtype 2
stats "$out/gain.dat" using 1 nooutput
plot for [i=0:STATS_blocks-1] "$out/gain.dat" index i using 1:2 with linespoints linewidth 2 title columnheader(1)
PLOT
    echo "$out/gain.$type"
fi
if [ -s "$out/bandwidth.dat" ]; then
    gnuplot <<PLOT
set terminal $terminal
set output "$out/bandwidth.$type"
set title "Share of the measured read bandwidth\n$title" noenhanced
set style fill solid 0.7
set boxwidth 0.7
set yrange [0:*]
set grid ytics
set xtics rotate by -35 noenhanced
unset key
set arrow from graph 0, first 1 to graph 1, first 1 nohead dashtype 2
plot "$out/bandwidth.dat" using 0:2:xtic(1) with boxes
PLOT
    echo "$out/bandwidth.$type"
fi
