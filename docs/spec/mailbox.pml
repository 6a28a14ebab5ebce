/* A topic of /mailbox: what is answered, what is in the log, and what a crash takes away.
 *
 * Two senders, two receivers and one owner of a log. The owner decides on its state in memory, which is
 * ahead of the log; the log is written behind it, in order; an answer leaves only when its record is in the
 * log. A crash throws away the state and whatever was not written, and the state is made again from the log.
 * A lease can run out at any time after it was given.
 *
 *     spin -a mailbox.pml && cc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan
 *
 * Checked: an answered send is in the log until it is acknowledged; no two hold a message under live leases;
 * what was acknowledged, and answered, is never handed out again. With -DEAGER an answer leaves before its
 * record is written, and with -DNOLEASE a lease is not checked: then the checker must find a violation.
 */

#define M 2		/* messages, one a sender */
#define LOG 6		/* records */
#define CRASHES 1

#define SEND 0
#define LEASE 1
#define DONE 2
#define OUT 3		/* the lease ran out */

#define ABSENT 0
#define WAITS 1
#define LEASED 2
#define GONE 3

typedef Rec { byte kind; byte m; byte who };

Rec log[LOG];
byte decided = 0;	/* records noted: the state is that of all of them */
byte written = 0;	/* records in the store: those below survive */
byte crashes = 0;
byte epoch = 0;		/* whoever waits for an answer of another epoch gets none */

byte state[M];		/* as the owner has it */
byte holder[M];		/* who has it leased there, 0 for nobody */

bool answered[M];	/* the sender was told */
bool acked[M];		/* the receiver was told */
byte live[M];		/* receivers that hold a lease which has not run out */

inline apply(r) {
	if
	:: r.kind == SEND -> state[r.m] = WAITS
	:: r.kind == LEASE -> state[r.m] = LEASED; holder[r.m] = r.who
	:: r.kind == DONE -> state[r.m] = GONE; holder[r.m] = 0
	:: r.kind == OUT -> state[r.m] = WAITS; holder[r.m] = 0
	fi
}

inline decide(k, msg, w, at) {
	log[decided].kind = k; log[decided].m = msg; log[decided].who = w;
	apply(log[decided]);
	decided++;
	at = decided
}

/* Wait until record `at` is written; `ok` says whether there is an answer. */
inline settle(at, since, ok) {
#ifdef EAGER
	ok = (epoch == since)
#else
	atomic {
		(written >= at || epoch != since);
		ok = (epoch == since)
	}
#endif
}

proctype Sender(byte m) {
	byte at, since; bool ok = false;
	do
	:: ok || decided >= LOG - 2 -> break
	:: else ->
		atomic {
			since = epoch;
			if
			:: state[m] == ABSENT && decided < LOG - 2 -> decide(SEND, m, 0, at)
			:: state[m] != ABSENT -> at = decided	/* the idempotency key: the same answer */
			:: else -> at = 255
			fi
		}
		if
		:: at == 255 -> break
		:: else -> settle(at, since, ok)
		fi;
		atomic { if :: ok -> answered[m] = true :: else fi }
	od
}

proctype Receiver(byte me) {
	byte m, at, since; bool ok;
	do
	:: atomic {
		decided < LOG - 2 ->
		since = epoch; ok = false;
		if
		:: m = 0
		:: m = 1
		fi;
		if
#ifdef NOLEASE
		:: state[m] == WAITS || state[m] == LEASED -> decide(LEASE, m, me, at)
#else
		:: state[m] == WAITS -> decide(LEASE, m, me, at)
#endif
		:: else -> at = 255
		fi
	   }
	   if
	   :: at == 255 -> skip
	   :: else ->
		settle(at, since, ok);
		if
		:: ok ->
			atomic {
				/* It may have run out by now: then it is not ours, and not live. */
				if
				:: holder[m] == me && epoch == since ->
					assert(!acked[m]);
					live[m]++;
					assert(live[m] <= 1)
				:: else -> ok = false
				fi
			}
		:: else -> skip
		fi;
		if
		:: ok ->
			/* Either it is acknowledged, or the lease runs out, or the process dies first. */
			if
			:: atomic {
				skip;
				if
				:: epoch == since -> live[m]--
				:: else -> skip
				fi;
				if
				:: state[m] == LEASED && holder[m] == me && epoch == since && decided < LOG ->
					decide(DONE, m, me, at)
				:: else -> ok = false
				fi
			   }
			   if
			   :: ok ->
				settle(at, since, ok);
				atomic { if :: ok -> acked[m] = true :: else fi }
			   :: else -> skip
			   fi
			:: atomic {
				skip;
				if
				:: epoch == since -> live[m]--
				:: else -> skip
				fi;
				if
				:: state[m] == LEASED && holder[m] == me && epoch == since && decided < LOG ->
					decide(OUT, m, 0, at)
				:: else -> skip
				fi
			   }
			fi
		:: else -> skip
		fi
	   fi
	:: decided >= LOG - 2 -> break
	:: true -> break
	od
}

/* One commit writes everything that was decided before it began, or less. */
proctype Store() {
	do
	:: atomic { written < decided -> written++ }
	:: atomic {
		crashes < CRASHES ->
		crashes++; epoch++;
		decided = written;
		state[0] = ABSENT; state[1] = ABSENT; holder[0] = 0; holder[1] = 0;
		byte i = 0;
		do
		:: i < written -> apply(log[i]); i++
		:: else -> break
		od;
		/* A lease that survives the crash runs out; its holder was cut off with the rest. */
		i = 0;
		do
		:: i < M ->
			if
			:: state[i] == LEASED -> state[i] = WAITS; holder[i] = 0
			:: else -> skip
			fi;
			i++
		:: else -> break
		od;
		live[0] = 0; live[1] = 0;
		/* What was answered is in what is left. */
		assert(!answered[0] || state[0] != ABSENT);
		assert(!answered[1] || state[1] != ABSENT);
		assert(!acked[0] || state[0] == GONE);
		assert(!acked[1] || state[1] == GONE)
	   }
	:: timeout -> break
	od
}

init {
	atomic {
		run Sender(0); run Sender(1);
		run Receiver(1); run Receiver(2);
		run Store()
	}
}
