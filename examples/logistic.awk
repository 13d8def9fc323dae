# The simulation of simulate_analyze_merge.py: iterates x -> r x (1 - x) for evenly spaced r and prints, for
# every r, the Lyapunov exponent of the orbit: the mean of log|r (1 - 2x)|. It is positive where the map is chaotic.
#
#   awk -v first=3.5 -v step=0.001 -v count=10 -f logistic.awk

BEGIN {
    warmup = 1000
    steps = 5000
    for (i = 0; i < count; i++) {
        r = first + i * step
        x = 0.4
        sum = 0
        for (n = 0; n < warmup + steps; n++) {
            x = r * x * (1 - x)
            slope = r * (1 - 2 * x)
            if (slope < 0) slope = -slope
            if (n >= warmup) sum += log(slope + 1e-300)
        }
        printf "%.6f %.6f\n", r, sum / steps
    }
}
