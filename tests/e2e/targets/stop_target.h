/* What a probed function of stop_target.c is asked for, and what its caller must see then. */
#ifndef STOP_TARGET_H
#define STOP_TARGET_H

/* Bits of the probed functions' second argument. */
#define ASK_RETURN 1
#define ASK_WRITES 2
#define ASK_BAD_ADDRESS 4 /* the second write goes to an unmapped page */
#define ASK_WITHOUT_SIGNAL 8 /* as if the signal had been forgotten */

#define ASKED_LOW(seq) ((seq) * 0x9e3779b97f4a7c15UL)
#define ASKED_HIGH(seq) (~(seq))
#define OWN_LOW(seq) ((seq) + 1)
#define OWN_HIGH 0x0123456789abcdefUL

enum stop_probe_count {
	STOP_PROBE_ASKED,
	STOP_PROBE_BLOCKED,
	STOP_PROBE_UNTRACED,
	STOP_PROBE_FULL,
	STOP_PROBE_NO_SIGNAL,
	NR_STOP_PROBE_COUNTS,
};

#endif
