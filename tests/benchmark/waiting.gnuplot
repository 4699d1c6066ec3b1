# Draws the waiting times that benchmark_contended writes, over one server and over a majority:
#   benchmark_contended --waiters 32 --sections 1 --waits one.tsv
#   benchmark_contended --waiters 32 --sections 1 --waits majority.tsv --servers 3
#   gnuplot -c tests/benchmark/waiting.gnuplot one.tsv majority.tsv > .github/waiting.svg
# A waiter that takes again what it has just released hasn't waited for anybody: such waits are left out.

waits = ARG1
majority = ARG2
wait = '($2 == 1 ? $1 : NaN)'
# Rounded up to a part of a decade, so that the file stays small; waits of about the same length need a finer one.
rounded(ms, parts) = 10 ** (ceil(parts * log10(ms)) / (1.0 * parts))

stats waits index 0 using @wait name 'handed' nooutput
stats majority index 0 using @wait name 'majority' nooutput
stats waits index 1 using @wait name 'polled' nooutput

set terminal svg size 800,420 font 'sans-serif,15' background 'white'
set title 'How long 32 waiters wait for a lock that each holds for 1 ms' font ',18'
set ylabel 'share of waits that are over'
set logscale x
set xrange [0.5:10000]
set xtics ('after 1 ms' 1, '10 ms' 10, '100 ms' 100, '1 s' 1000, '10 s' 10000)
set yrange [0:1]
set ytics ('0' 0, '25 %%' 0.25, '50 %%' 0.5, '75 %%' 0.75, 'all' 1)
set border 3
set tics nomirror
set grid linecolor '#dddddd'
unset key

set label 'RedisLock' at handed_median / 1.3, 0.6 right textcolor '#0072b2' font ',17'
set label 'a majority of three' at majority_median * 1.2, 0.35 left textcolor '#009e73' font ',17'
set label 'RedisLock, polling' at polled_up_quartile * 1.3, 0.7 left textcolor '#d55e00' font ',17'

plot waits index 0 using (rounded($1, 1000)):2 smooth cnormal with lines linewidth 3 linecolor '#0072b2', \
     majority index 0 using (rounded($1, 1000)):2 smooth cnormal with lines linewidth 3 linecolor '#009e73', \
     waits index 1 using (rounded($1, 40)):2 smooth cnormal with lines linewidth 3 linecolor '#d55e00'
