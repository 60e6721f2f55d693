/* Time.  Seconds as double everywhere; only for reports and deadlines, never for results. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

double clock_now(void); /* monotonic seconds from an arbitrary origin */
void clock_sleep(double seconds);
void clock_date(char out[32]); /* UTC as 2026-01-31T23:59:59Z */

#endif
