/*
 * Moving a running VM: who may continue it, whatever fails on the way.
 *
 * NH hosts, one VM, one lock; host 0 runs the VM. lock.pml proves that a host
 * whose slot was found stale has frozen or lost its VM: here that is taken as
 * given, so there is no clock. A record is linked, and what the guard concludes
 * from it follows later; links land late, also those of hosts and guards that
 * are gone; moves fail at any point, are given up and begun anew.
 * docs/model.md says what stands for what.
 */

#ifndef NO_ARRIVE_PAUSED /* what arrives stays paused until its guard says so */
#define NO_ARRIVE_PAUSED 0
#endif
#ifndef NO_CLAIM_HANDED  /* `handed` permits to claim the next epoch, not to run */
#define NO_CLAIM_HANDED 0
#endif
#ifndef NO_HANDED        /* the destination waits for `handed`, or for the source's end */
#define NO_HANDED 0
#endif
#ifndef NO_HELD_FIRST    /* a source that was stopped for the switch goes on only under `held` */
#define NO_HELD_FIRST 0
#endif
#ifndef NO_MOVE_ID       /* what arrived goes on only by the move it came with */
#define NO_MOVE_ID 0
#endif
#ifndef NO_MOVE_NEXT     /* each record takes exactly the number after the one it follows */
#define NO_MOVE_NEXT 0
#endif
#ifndef NO_MOVE_SOUND    /* a win counts only under a lease without a gap */
#define NO_MOVE_SOUND 0
#endif
#ifndef NO_PREPARE       /* while a VM moves, a start without the move id is refused */
#define NO_PREPARE 0
#endif
#ifndef NO_SOURCE_GONE   /* the source hands over when its QEMU is gone */
#define NO_SOURCE_GONE 0
#endif
#ifndef NO_SOURCE_STALE  /* from `moving` others claim only when the source is proven stale */
#define NO_SOURCE_STALE 0
#endif

#ifndef NH
#define NH 3
#endif
#ifndef MAXEPOCH
#define MAXEPOCH 5
#endif
#ifndef MAXMOVES
#define MAXMOVES 2
#endif
#ifndef KILLS
#define KILLS 0         /* guards that lose their memory */
#endif
#ifndef BOOTS
#define BOOTS 0         /* hosts that were lost and come back */
#endif
#ifndef STOP
#define STOP 1          /* the VM is stopped and its lock released */
#endif

/* the highest record */
#define RELEASED 0
#define HELD     1
#define MOVING   2
#define HANDED   3
/* the guard's view of the lock */
#define LNONE 0
#define LHELD 1
#define LSUSP 2
#define LLOST 3
/* the process */
#define PNONE   0
#define PPAUSED 1       /* a cold start */
#define PRUN    2
#define PSTOPPED 3      /* the source, stopped for the switch */
#define PFILLING 4      /* the destination, its memory on the way */
#define PFULL   5       /* the destination, all there, paused */
/* a chain: list and judge, link, learn what became of it */
#define CIDLE 0
#define CLINK 1
#define CDONE 2
#define KCLAIM   0      /* to start the VM from its disks */
#define KRECLAIM 1
#define KRELEASE 2
#define KMOVE    3      /* held -> moving */
#define KBACK    4      /* moving -> held */
#define KHAND    5      /* moving -> handed */
#define KTAKE    6      /* the destination: -> held */

bit TWO_RUNNING;        /* two unfrozen instances of the VM */
bit OLD_INSTANCE;       /* an instance goes on after the VM ran elsewhere */

/* the datastore */
byte top = 1;
byte tState = HELD;
byte tOwner;
byte tTarget;           /* of a moving record */
byte tMove;             /* its move id; 0: none */
bit  judged;            /* the owner of this epoch was found silent, once and for good */

/* hosts */
bit  up[NH];
bit  leased[NH];
#if KILLS
byte kills;
#endif
#if BOOTS
byte boots;
#endif

/* the VM on hosts */
byte lk[NH];
byte proc[NH];
bit  fz[NH];            /* the unit is frozen, also for what appears in it */
bit  old[NH];           /* the VM ran elsewhere since this memory was whole */
bit  contP[NH];         /* the guard confirmed: the agent continues the VM */
byte mv[NH];            /* the move this source works on */
byte pm[NH];            /* the move the arriving instance came with */
bit  swept[NH];         /* the destination said that all has arrived */
byte st[NH];
byte kind[NH];
byte prev[NH];          /* number of the record that was judged */
byte dst[NH];
byte mid[NH];
bit  lap[NH];           /* the lease ended since the link was ordered */
bit  ok[NH];
/* a link whose guard or host is gone */
byte oKind[NH];
byte oPrev[NH];
byte oDst[NH];
byte oMid[NH];
bit  orph[NH];

byte moves;
byte y;

#define RUNS(h)  (proc[h] == PRUN && !fz[h])
#define MINE(h)  (tOwner == h && (tState == HELD || tState == MOVING))
#define GIVEN(h) (tState == HANDED && tOwner == h)
#define ROOM     (top < MAXEPOCH)
#define ARRIVED(h) (proc[h] == PFULL || proc[h] == PFILLING)

inline check(h) {
	if
	:: RUNS(h) ->
		y = 0;
		do
		:: y < NH ->
			if
			:: y != h && RUNS(y) -> TWO_RUNNING = 1
			:: y != h && proc[y] != PNONE && proc[y] != PFILLING && !RUNS(y) -> old[y] = 1
			:: else
			fi;
			y++
		:: else -> break
		od;
		y = 0;
		OLD_INSTANCE = old[h]
	:: else
	fi;
	assert(TWO_RUNNING == 0);
	assert(OLD_INSTANCE == 0)
}

inline none(h) { proc[h] = PNONE; old[h] = 0; contP[h] = 0; pm[h] = 0; swept[h] = 0 }

inline endChain(h) { st[h] = CIDLE; kind[h] = 0; prev[h] = 0; dst[h] = 0; mid[h] = 0; lap[h] = 0; ok[h] = 0 }

inline order(h, k, d, m) { st[h] = CLINK; kind[h] = k; prev[h] = top; dst[h] = d; mid[h] = m }

inline abandon(h) {
	if
	:: st[h] == CLINK && !orph[h] -> orph[h] = 1; oKind[h] = kind[h]; oPrev[h] = prev[h]; oDst[h] = dst[h]; oMid[h] = mid[h]
	:: else
	fi;
	endChain(h)
}

inline publish(h, k, d, m) {
	top++;
	judged = 0;
	tOwner = (k == KHAND -> d : h);
	tState = (k == KRELEASE -> RELEASED : (k == KMOVE -> MOVING : (k == KHAND -> HANDED : HELD)));
	tTarget = (k == KMOVE -> d : 0);
	tMove = ((k == KMOVE || k == KHAND) -> m : 0)
}

inline suspect(h) {
	if
	:: lk[h] == LHELD -> lk[h] = LSUSP
	:: else
	fi;
	fz[h] = (proc[h] != PNONE || lk[h] != LNONE || fz[h])
}

proctype Host(byte h) {
	byte d;
end:	do
	/* --- power --- */
	:: d_step { up[h] ->
		up[h] = 0; leased[h] = 0; abandon(h); lk[h] = LNONE; none(h); fz[h] = 0; mv[h] = 0 }
#if BOOTS
	:: d_step { !up[h] && boots < BOOTS -> boots++; up[h] = 1 }
#endif
#if KILLS
	/* --- the guard loses its memory: what runs here is frozen --- */
	:: d_step { up[h] && kills < KILLS ->
		kills++; leased[h] = 0; abandon(h); lk[h] = LNONE; mv[h] = 0; contP[h] = 0;
		fz[h] = (proc[h] != PNONE) }
	/* ... until its successor has looked whose lock it is */
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && lk[h] == LNONE && (proc[h] == PRUN || proc[h] == PPAUSED || proc[h] == PSTOPPED) ->
		lk[h] = (MINE(h) -> LSUSP : LLOST) }
#endif
	/* --- the lease --- */
	:: d_step { up[h] && leased[h] -> leased[h] = 0; lap[h] = (st[h] != CIDLE); suspect(h) }
	:: d_step { up[h] && !leased[h] -> leased[h] = 1 }

	/* --- start, continue, stop --- */
	:: d_step { up[h] && contP[h] && proc[h] != PNONE && proc[h] != PFILLING ->
		contP[h] = 0; proc[h] = PRUN; pm[h] = 0; check(h) }
	:: d_step { STOP && up[h] && (proc[h] == PRUN || proc[h] == PPAUSED) && !fz[h] && st[h] == CIDLE -> none(h) }
	:: d_step { STOP && up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LHELD && proc[h] == PNONE && MINE(h) && tState == HELD -> order(h, KRELEASE, 0, 0) }
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LNONE && proc[h] == PNONE &&
		(tState == RELEASED || tOwner == h || judged || (tState == MOVING && NO_SOURCE_STALE)) -> order(h, KCLAIM, 0, 0) }

	/* --- the source --- */
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LHELD && RUNS(h) && mv[h] == 0 && MINE(h) && tState == HELD && moves < MAXMOVES ->
		moves++; d = (h + 1) % NH; order(h, KMOVE, d, moves); d = 0 }
	:: d_step { NH > 2 && up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LHELD && RUNS(h) && mv[h] == 0 && MINE(h) && tState == HELD && moves < MAXMOVES ->
		moves++; d = (h + 2) % NH; order(h, KMOVE, d, moves); d = 0 }
	/* QEMU stops for the switch; the rest of the memory arrives, or does not */
	:: d_step { up[h] && RUNS(h) && mv[h] != 0 && st[h] == CIDLE -> proc[h] = PSTOPPED }
	:: d_step { up[h] && proc[h] == PSTOPPED && mv[h] != 0 && !fz[h] ->
		d = 0;
		do
		:: d < NH && !(d != h && up[d] && proc[d] == PFILLING && pm[d] == mv[h]) -> d++
		:: else -> break
		od;
		if
		:: d < NH -> proc[d] = (NO_ARRIVE_PAUSED -> PRUN : PFULL); old[d] = 0; swept[h] = 1; check(d)
		:: else
		fi;
		d = 0 }
	/* all has arrived: QEMU ends, then the guard hands over */
	:: d_step { up[h] && proc[h] == PSTOPPED && swept[h] && st[h] == CIDLE -> proc[h] = PNONE; old[h] = 0; contP[h] = 0 }
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LHELD && mv[h] != 0 && swept[h] && MINE(h) && tState == MOVING &&
		(proc[h] == PNONE || (NO_SOURCE_GONE && proc[h] == PSTOPPED)) -> order(h, KHAND, tTarget, tMove) }
	/* or it is given up */
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && ROOM && lk[h] == LHELD && mv[h] != 0 && MINE(h) && tState == MOVING -> order(h, KBACK, 0, 0) }
	:: d_step { NO_HELD_FIRST && up[h] && proc[h] == PSTOPPED && !contP[h] && lk[h] == LHELD && leased[h] -> contP[h] = 1 }

	/* libvirt knows of no lock: a QEMU that it finds stopped it may continue */
	:: d_step { up[h] && proc[h] == PSTOPPED && lk[h] == LNONE -> proc[h] = PRUN; check(h) }

	/* --- the destination --- */
	:: d_step { up[h] && proc[h] == PNONE && lk[h] == LNONE && st[h] == CIDLE && tState == MOVING && tTarget == h -> proc[h] = PFILLING; pm[h] = tMove }
	/* a user's start, which would run at once */
	:: d_step { NO_PREPARE && up[h] && proc[h] == PNONE && lk[h] == LNONE && st[h] == CIDLE && tState == MOVING && tTarget == h -> proc[h] = PRUN; check(h) }
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && ROOM && proc[h] == PFULL && lk[h] == LNONE &&
		((tMove == pm[h] && GIVEN(h)) || (NO_MOVE_ID && GIVEN(h)) ||
		 ((tMove == pm[h] || NO_MOVE_ID) && tState == MOVING && tTarget == h && (judged || NO_SOURCE_STALE))) ->
		if
		:: NO_CLAIM_HANDED && GIVEN(h) -> lk[h] = LHELD; fz[h] = 0; contP[h] = 1
		:: else -> order(h, KTAKE, 0, 0)
		fi }
	:: d_step { NO_HANDED && up[h] && leased[h] && proc[h] == PFULL && !contP[h] -> contP[h] = 1 }
	/* its move is over: it ends */
	:: d_step { up[h] && st[h] == CIDLE && ARRIVED(h) && lk[h] == LNONE && tMove != pm[h] && !(NO_MOVE_ID && tState == MOVING) -> none(h); fz[h] = 0 }
	:: d_step { up[h] && st[h] == CIDLE && proc[h] == PFILLING && lk[h] == LNONE -> none(h); fz[h] = 0 }

	/* --- after a lapse --- */
	:: d_step { up[h] && leased[h] && st[h] == CIDLE && lk[h] == LSUSP && (ROOM || !MINE(h)) ->
		if
		:: MINE(h) -> order(h, KRECLAIM, 0, 0)
		:: else -> lk[h] = LLOST
		fi }
	:: d_step { up[h] && leased[h] && lk[h] == LLOST && st[h] == CIDLE -> none(h); fz[h] = 0; lk[h] = LNONE; mv[h] = 0 }

	/* --- links land --- */
	:: d_step { st[h] == CLINK ->
		prev[h] = (NO_MOVE_NEXT -> top : prev[h]);
		if
		:: prev[h] == top && ROOM -> publish(h, kind[h], dst[h], mid[h]); ok[h] = 1
		:: else -> ok[h] = 0
		fi;
		st[h] = CDONE }
	:: d_step { orph[h] ->
		if
		:: (oPrev[h] == top || NO_MOVE_NEXT) && ROOM -> publish(h, oKind[h], oDst[h], oMid[h])
		:: else
		fi;
		orph[h] = 0; oKind[h] = 0; oPrev[h] = 0; oDst[h] = 0; oMid[h] = 0 }
	:: d_step { orph[h] -> orph[h] = 0; oKind[h] = 0; oPrev[h] = 0; oDst[h] = 0; oMid[h] = 0 }

	/* --- and are judged --- */
	:: d_step { up[h] && st[h] == CDONE && leased[h] ->
		if
		:: ok[h] && kind[h] == KHAND -> lk[h] = LNONE; mv[h] = 0; swept[h] = 0
		:: ok[h] && kind[h] == KRELEASE -> lk[h] = LNONE
		:: ok[h] && (NO_MOVE_SOUND || !lap[h]) && kind[h] == KMOVE -> mv[h] = mid[h]
		:: ok[h] && (NO_MOVE_SOUND || !lap[h]) && kind[h] == KBACK -> mv[h] = 0; swept[h] = 0; contP[h] = (proc[h] == PSTOPPED)
		:: ok[h] && (NO_MOVE_SOUND || !lap[h]) && kind[h] == KRECLAIM ->
			lk[h] = LHELD; mv[h] = 0; swept[h] = 0; fz[h] = 0; contP[h] = (proc[h] == PSTOPPED || proc[h] == PPAUSED); check(h)
		:: ok[h] && (NO_MOVE_SOUND || !lap[h]) && kind[h] == KCLAIM -> lk[h] = LHELD; fz[h] = 0; proc[h] = PPAUSED; old[h] = 0; contP[h] = 1
		:: ok[h] && (NO_MOVE_SOUND || !lap[h]) && kind[h] == KTAKE -> lk[h] = LHELD; fz[h] = 0; contP[h] = (proc[h] == PFULL)
		:: ok[h] && !NO_MOVE_SOUND && lap[h] && (kind[h] == KCLAIM || kind[h] == KTAKE) -> lk[h] = LSUSP; fz[h] = 1
		:: !ok[h] && lk[h] == LHELD -> suspect(h) /* whose it is now is not known */
		:: else
		fi;
		endChain(h) }
	od
}

/* lock.pml: who was found silent runs nothing. */
proctype Primary() {
end:	do
	:: d_step { tState != RELEASED && !judged && !leased[tOwner] && !RUNS(tOwner) -> judged = 1 }
	od
}

init {
	d_step {
		y = 0;
		do
		:: y < NH -> up[y] = 1; leased[y] = 1; y++
		:: else -> break
		od;
		y = 0;
		lk[0] = LHELD; proc[0] = PRUN
	}
	atomic {
		run Host(0); run Host(1);
#if NH > 2
		run Host(2);
#endif
		run Primary()
	}
}
