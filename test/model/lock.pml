/*
 * The lease, the lock and the watchdog: why a VM never runs twice.
 *
 * NH hosts, NV VMs, one datastore. What a guard decides and the moment at which
 * its order is carried out are separate steps, so a guard may be stopped between
 * any two; storage calls land at any time, fail, lose their answers, and land
 * after whoever ordered them is gone. docs/model.md says what stands for what.
 * Each NO_... below takes one rule of the protocol away.
 */

#ifndef NO_ARMED         /* a silent owner's lock is taken only if it was armed */
#define NO_ARMED 0
#endif
#ifndef NO_BEFORE_PET    /* a pet that is late is not carried out */
#define NO_BEFORE_PET 0
#endif
#ifndef NO_BEFORE_THAW   /* a thaw that is late is not carried out */
#define NO_BEFORE_THAW 0
#endif
#ifndef NO_BOOT_PROOF    /* another boot id counts when it is seen to write */
#define NO_BOOT_PROOF 0
#endif
#ifndef NO_CONTACT_AGE   /* a contact is as old as the heartbeat that was heard */
#define NO_CONTACT_AGE 0
#endif
#ifndef NO_LATE_RELEASE  /* a lock won for nobody is released */
#define NO_LATE_RELEASE 0
#endif
#ifndef NO_LOCK          /* no start without the lock */
#define NO_LOCK 0
#endif
#ifndef NO_NEXT_EPOCH    /* a claim links the number after the one it listed */
#define NO_NEXT_EPOCH 0
#endif
#ifndef NO_OWN_BOOT      /* a guard that restarts stays bound by its boot's locks */
#define NO_OWN_BOOT 0
#endif
#ifndef NO_PAUSED_START  /* an agent's start is paused until the guard confirms */
#define NO_PAUSED_START 0
#endif
#ifndef NO_PET_LIMIT     /* no pets for VMs that may write beyond the lease */
#define NO_PET_LIMIT 0
#endif
#ifndef NO_RECLAIM       /* after a lapse: claim, then thaw */
#define NO_RECLAIM 0
#endif
#ifndef NO_RELEASE_GONE  /* a lock is released when the VM is gone */
#define NO_RELEASE_GONE 0
#endif
#ifndef NO_RELEASE_NEXT  /* a frozen VM's lock that others released is claimed only straight after the own record */
#define NO_RELEASE_NEXT 0
#endif
#ifndef NO_RELIST        /* after a link, list again */
#define NO_RELIST 0
#endif
#ifndef NO_SCAN_FIRST    /* no pet before the first list of processes */
#define NO_SCAN_FIRST 0
#endif
#ifndef NO_SILENCE       /* a verdict needs silence on the network too */
#define NO_SILENCE 0
#endif
#ifndef NO_SOUND         /* a claim counts only under a lease without a gap */
#define NO_SOUND 0
#endif
#ifndef NO_STALE         /* a verdict needs a slot at rest for a lease */
#define NO_STALE 0
#endif
#ifndef NO_START_OF_WRITE /* a lease counts from the start of the write */
#define NO_START_OF_WRITE 0
#endif
#ifndef NO_UNKNOWN       /* a missing lock is unknown, not free */
#define NO_UNKNOWN 0
#endif

/* The size of the world, and what may happen in it. */
#ifndef NH
#define NH 2
#endif
#ifndef NV
#define NV 1
#endif
#ifndef MAXBOOT
#define MAXBOOT 1       /* boots of each host; the last one ends for good */
#endif
#ifndef MAXEPOCH
#define MAXEPOCH 4      /* lock records; nobody claims beyond */
#endif
#ifndef KILLS
#define KILLS 0         /* how many guards are killed */
#endif
#ifndef UNARMED
#define UNARMED 0       /* bit mask of the hosts without a watchdog */
#endif
#ifndef KEEP
#define KEEP 1          /* newest records kept; older numbers are free again */
#endif
#ifndef OFF
#define OFF 1           /* power may fail */
#endif
#ifndef STEADY
#define STEADY 0        /* host 1 always renews its lease and feeds its watchdog in time */
#endif
#ifndef STALL
#define STALL 1         /* a guard may stop between a decision about a pet and the pet */
#endif
#ifndef STOP
#define STOP 1          /* VMs are stopped and their locks released */
#endif
#ifndef ORPHANS
#define ORPHANS 0       /* links that fail may land later */
#endif
#ifndef DISK
#define DISK 0          /* guests write; a write may be outstanding */
#endif
#ifndef NET
#define NET 0           /* hosts have contact; without it they are silent always */
#endif
#ifndef LATE
#define LATE 0          /* a heartbeat of a former boot may land later */
#endif
#ifndef THEFT
#define THEFT 0         /* somebody deletes the lock */
#endif

/* The clock. Ages count ticks and stop at the largest value that matters. */
#define L      2        /* lease */
#define M      1        /* margin: VMs are frozen from L-M on */
#define WMIN   1        /* the watchdog may bite from here on ... */
#define WMAX   1        /* ... and has bitten when this is over */
#define STALE  (NO_STALE -> 1 : L+1) /* at rest for longer than L, drift included */
#define SMAX   (L+1)
#define OLD    (L-M)    /* the age at which a lease permits nothing */
#define PETAGE (L-WMAX) /* pets for VMs that may write: up to this age */
#define AMAX   (L-WMAX+1) /* ages of leases: no age beyond matters */

#define NHV    (NH*NV)
#define HV(h,v) ((h)*NV+(v))
#define NONE   NH

/* the highest record */
#define RELEASED 0
#define HELD     1
#define MISSING  2
/* the guard's view of a VM's lock */
#define LNONE 0
#define LHELD 1
#define LSUSP 2
#define LLOST 3
/* the process */
#define PNONE   0
#define PPAUSED 1
#define PRUN    2
/* what the guard knows of a freeze */
#define UNFROZEN 0
#define ORDERED  1
#define FROZEN   2
#define BUSY     3      /* frozen, I/O outstanding */
/* a chain of storage calls on a lock */
#define CIDLE  0
#define CPROOF 1        /* the owner's slot shows another boot: read it again */
#define CLINK  2        /* link under way */
#define CDONE  3        /* link answered, or given up */
#define CAGAIN 4        /* listing again */
#define CREAD  5        /* listed again, the answer is on its way */
#define KCLAIM   0
#define KRECLAIM 1
#define KRELEASE 2
#define KLATE    3      /* release of a late win */

/* properties: set when violated */
bit TWO_RUNNING;        /* two unfrozen instances of a VM */
bit WRITE_AFTER_OWNER;  /* a former owner's write may land while a new one runs */
bit OLD_INSTANCE;       /* an instance goes on after the VM ran elsewhere */
bit LOCK_PINNED;        /* a host keeps a lock that it does not know it has */

/* the datastore */
byte top[NV];
byte tOwner[NV];
byte tBoot[NV];
byte tState[NV];
bit  topMine[NHV];      /* the highest record carries the nonce of this chain */
byte slotBoot[NH];
#if ORPHANS
byte orphE[NHV];        /* a link that was given up and may still land: its number */
byte orphB[NHV];
bit  orphRel[NHV];
bit  topOrph[NHV];      /* the highest record is such a claim */
bit  omem[NHV];         /* the guard remembers it */
#define KNOWN(i) omem[i]
#else
#define KNOWN(i) 0
#endif

/* hosts */
bit  up[NH];
byte boot[NH];
byte pet[NH];           /* since the watchdog was last fed */
bit  petP[NH];          /* a pet was decided, not carried out ... */
bit  petAny[NH];        /* ... because all VMs were safe: it is never late */
bit  guard[NH];
bit  leased[NH];
byte age[NH];           /* of the last heartbeat that counted, from its start */
byte hb[NH];            /* 1 under way, 2 landed, not answered */
byte hbAge[NH];
#if KILLS
byte kills;
bit  scanned[NH];
#define SCANNED(h) scanned[h]
#else
#define SCANNED(h) 1
#endif

/* VMs on hosts */
byte lk[NHV];
byte proc[NHV];
bit  fz[NHV];           /* the cgroup is frozen */
byte fzc[NHV];
bit  thawP[NHV];
#if STOP
bit  passed[NHV];       /* another host held the lock since this one did */
bit  old[NHV];          /* the VM ran elsewhere since this instance began */
#define PASSED(i) (passed[i] && !NO_RELEASE_NEXT)
#define FRESH(i)  old[i] = 0
#else
#define PASSED(i) 0
#define FRESH(i)  skip
#endif
bit  startP[NHV];       /* the agent was granted a start */
bit  contP[NHV];        /* the guard confirmed: the agent continues the VM */
byte st[NHV];
byte kind[NHV];
byte prevE[NHV];
bit  lap[NHV];          /* the lease ended since the link was ordered */
bit  lok[NHV];          /* what the link answered, then what the list says */
#if DISK
bit  io[NHV];           /* a guest's write is outstanding */
#define IO(i) io[i]
#else
#define IO(i) 0
#endif
#if LATE
byte pB[NHV];           /* boot in the owner's slot as first seen */
bit  pMv[NHV];          /* the slot moved under that boot since */
byte lateB[NH];         /* a heartbeat of that boot that may still land */
bit  chg[NH];           /* the slot is not what this host wrote */
#define CHANGED(h) chg[h]
#else
#define CHANGED(h) 0
#endif

/* The primary. It reads at once, which is the worst case: ages run earliest. */
byte sight[NH];         /* since the slot was last written */
bit  judged[NV];        /* the owner of this epoch was found silent, once and for good */
#if NET
byte heard[NH];         /* since the primary heard the host */
byte net[NH];           /* a heartbeat: 1 sent, 2 heard, its answer on the way */
byte nAge[NH];
byte cAge[NH];          /* of the contact */
#define HEARD(h)   heard[h]
#define CONTACT(h) (cAge[h] < L-WMAX)
#else
#define HEARD(h)   SMAX
#define CONTACT(h) 0
#endif

byte x; byte y; /* scratch, 0 between steps */

#define CALM(h)  (STEADY && h == 1)
#define ARMED(h) ((((UNARMED) >> (h)) & 1) == 0)
#define RUNS(i)  (proc[i] == PRUN && !fz[i])
/* The guard works on its own clock: what has ended by now ends first. */
#define LAPSED(h) (leased[h] && age[h] >= OLD)
#define READY(h) (up[h] && guard[h] && !LAPSED(h))
#define MINE(h,v) (tState[v] == HELD && tOwner[v] == h && tBoot[v] == boot[h])
#define OTHERS(h,v) (tState[v] == HELD && tOwner[v] != h)
#define ROOM(v)  (top[v] < MAXEPOCH)
/* no write of this VM can be under way, or somebody is told that it might */
#define SAFE(h,i) (proc[i] == PNONE || fzc[i] == FROZEN || (fzc[i] == BUSY && CONTACT(h)))
/* Does its lock oblige this host? A guard without memory does not know. */
#define OBLIGED(i) (lk[i] != LNONE || (!NO_OWN_BOOT && proc[i] != PNONE))

/* after anything that may let a VM run or write */
inline check(h, v) {
	y = 0;
	do
	:: y < NH ->
		if
		:: y != h && RUNS(HV(h,v)) && RUNS(HV(y,v)) -> TWO_RUNNING = 1
#if STOP
		:: y == h && RUNS(HV(h,v)) && old[HV(h,v)] -> OLD_INSTANCE = 1
		:: y != h && RUNS(HV(h,v)) && proc[HV(y,v)] != PNONE && !RUNS(HV(y,v)) -> old[HV(y,v)] = 1
#endif
		:: y != h && ((RUNS(HV(h,v)) && IO(HV(y,v))) || (IO(HV(h,v)) && RUNS(HV(y,v)))) -> WRITE_AFTER_OWNER = 1
		:: else
		fi;
		y++
	:: else -> break
	od;
	y = 0;
	assert(TWO_RUNNING == 0);
	assert(OLD_INSTANCE == 0);
	assert(WRITE_AFTER_OWNER == 0)
}

/* a record becomes the highest */
inline newTop(v, owner, b, state) {
	top[v] = top[v] + 1;
	tOwner[v] = owner; tBoot[v] = b; tState[v] = state;
	judged[v] = 0;
	y = 0;
	do
	:: y < NH ->
		topMine[HV(y,v)] = 0;
#if STOP
		passed[HV(y,v)] = (state == HELD -> y != owner : passed[HV(y,v)]);
#endif
#if ORPHANS
		topOrph[HV(y,v)] = 0;
#endif
		y++
	:: else -> break
	od;
	y = 0
}

inline endChain(i) {
	st[i] = CIDLE; kind[i] = 0; prevE[i] = 0; lap[i] = 0; lok[i] = 0; topMine[i] = 0;
#if LATE
	pB[i] = 0; pMv[i] = 0;
#endif
}

/* list, judge what is listed, order the link of the next number */
inline order(i, v, k) { prevE[i] = top[v]; kind[i] = k; st[i] = CLINK }

inline suspect(i) {
	if
	:: lk[i] == LHELD ->
		lk[i] = LSUSP; thawP[i] = 0;
		if
		:: fzc[i] == UNFROZEN -> fzc[i] = ORDERED
		:: else
		fi
	:: else
	fi
}

inline endLease(h) {
	leased[h] = 0;
	x = 0;
	do
	:: x < NV -> suspect(HV(h,x)); lap[HV(h,x)] = (st[HV(h,x)] != CIDLE); x++
	:: else -> break
	od;
	x = 0
}

/* a link that nobody waits for any more */
inline abandon(i, b) {
#if ORPHANS
	if
	:: st[i] == CLINK && orphE[i] == 0 -> orphE[i] = prevE[i] + 1; orphB[i] = b; orphRel[i] = (kind[i] >= KRELEASE)
	:: else
	fi
#else
	skip
#endif
}

/* the host dies: its links and its heartbeat may land later, nothing else */
inline down(h) {
	up[h] = 0; guard[h] = 0; leased[h] = 0; age[h] = AMAX; pet[h] = 0; petP[h] = 0; petAny[h] = 0;
#if KILLS
	scanned[h] = 0;
#endif
#if LATE
	if
	:: hb[h] == 1 && lateB[h] == 0 -> lateB[h] = boot[h]
	:: else
	fi;
	chg[h] = 0;
#endif
	hb[h] = 0; hbAge[h] = 0;
#if NET
	net[h] = 0; nAge[h] = 0; cAge[h] = 1;
#endif
	x = 0;
	do
	:: x < NV ->
		abandon(HV(h,x), boot[h]);
		endChain(HV(h,x));
		lk[HV(h,x)] = LNONE; proc[HV(h,x)] = PNONE; FRESH(HV(h,x)); fz[HV(h,x)] = 0; fzc[HV(h,x)] = UNFROZEN;
		thawP[HV(h,x)] = 0; startP[HV(h,x)] = 0; contP[HV(h,x)] = 0;
#if ORPHANS
		omem[HV(h,x)] = 0; topOrph[HV(h,x)] = 0;
#endif
#if DISK
		io[HV(h,x)] = 0;
#endif
		x++
	:: else -> break
	od;
	x = 0
}

inline wrote(h, b) {
	slotBoot[h] = b; sight[h] = 0;
#if LATE
	x = 0;
	do
	:: x < NHV -> /* who looks whether this slot grows under its boot? */
		if
		:: st[x] == CPROOF && tOwner[x % NV] == h && pB[x] == b -> pMv[x] = 1
		:: else
		fi;
		x++
	:: else -> break
	od;
	x = 0
#endif
}

/* y: may the watchdog be fed; petAny: for as long as you like */
inline petLimit(h) {
	y = 1; petAny[h] = 1; x = 0;
	do
	:: x < NV ->
		if
		:: OBLIGED(HV(h,x)) && !SAFE(h,HV(h,x)) -> petAny[h] = 0; y = y && (age[h] <= PETAGE)
		:: OBLIGED(HV(h,x)) && fzc[HV(h,x)] == BUSY -> petAny[h] = 0 /* safe as long as the contact lasts */
		:: else
		fi;
		x++
	:: else -> break
	od;
	x = 0;
	if
	:: NO_PET_LIMIT || !SCANNED(h) -> y = 1; petAny[h] = 1
	:: else
	fi
}

proctype Host(byte h) {
	do
	/* --- power --- */
	:: d_step { OFF && up[h] -> down(h) }
	:: d_step { !up[h] && boot[h] < MAXBOOT -> boot[h] = boot[h] + 1; up[h] = 1; guard[h] = 1 }
#if KILLS
	/* --- the guard's process --- */
	:: d_step { up[h] && guard[h] && kills < KILLS ->
		kills++; guard[h] = 0; scanned[h] = 0; petP[h] = 0; petAny[h] = 0; hb[h] = 0; hbAge[h] = 0;
		x = 0;
		do
		:: x < NV ->
#if ORPHANS
			omem[HV(h,x)] = omem[HV(h,x)] || (kind[HV(h,x)] < KRELEASE && st[HV(h,x)] >= CLINK);
			topOrph[HV(h,x)] = topOrph[HV(h,x)] || (topMine[HV(h,x)] && kind[HV(h,x)] < KRELEASE);
#endif
			abandon(HV(h,x), boot[h]);
			endChain(HV(h,x));
			thawP[HV(h,x)] = 0;
			fzc[HV(h,x)] = (fzc[HV(h,x)] == ORDERED -> UNFROZEN : fzc[HV(h,x)]);
			x++
		:: else -> break
		od;
		x = 0 }
	/* its successor remembers ... */
	:: d_step { up[h] && !guard[h] ->
		guard[h] = 1;
		leased[h] = leased[h] && age[h] < OLD;
		x = 0;
		do
		:: x < NV ->
			if
			:: !leased[h] && lk[HV(h,x)] != LNONE ->
				suspect(HV(h,x));
				fzc[HV(h,x)] = (fzc[HV(h,x)] == FROZEN -> FROZEN : ORDERED)
			:: else
			fi;
			x++
		:: else -> break
		od;
		x = 0 }
	/* ... or has lost its memory: what runs here without a known lock is frozen */
	:: d_step { up[h] && !guard[h] ->
		guard[h] = 1; leased[h] = 0; age[h] = AMAX;
		x = 0;
		do
		:: x < NV ->
			lk[HV(h,x)] = LNONE;
#if ORPHANS
			omem[HV(h,x)] = 0;
#endif
			if
			:: NO_OWN_BOOT -> fzc[HV(h,x)] = UNFROZEN
			:: !NO_OWN_BOOT && proc[HV(h,x)] != PNONE && fzc[HV(h,x)] != FROZEN -> fzc[HV(h,x)] = ORDERED
			:: else
			fi;
			x++
		:: else -> break
		od;
		x = 0 }
	:: d_step { READY(h) && !scanned[h] -> scanned[h] = 1 }
#endif
	/* --- the watchdog --- */
	:: d_step { up[h] && ARMED(h) && pet[h] >= WMIN -> down(h) }
#if STALL
	:: d_step { READY(h) && !petP[h] && !CALM(h) && (NO_SCAN_FIRST || SCANNED(h)) ->
		petLimit(h);
		petP[h] = y; petAny[h] = petAny[h] && y; y = 0 }
	:: d_step { up[h] && guard[h] && petP[h] ->
		petP[h] = 0;
		pet[h] = ((NO_BEFORE_PET || petAny[h] || age[h] <= PETAGE || CONTACT(h)) -> 0 : pet[h]);
		petAny[h] = 0 }
#else
	:: d_step { READY(h) && pet[h] > 0 && (NO_SCAN_FIRST || SCANNED(h)) ->
		petLimit(h);
		pet[h] = (y -> 0 : pet[h]); petAny[h] = 0; y = 0 }
#endif
	/* --- heartbeats --- */
	:: d_step { READY(h) && !CALM(h) && SCANNED(h) && hb[h] == 0 && !CHANGED(h) -> hb[h] = 1; hbAge[h] = 0 }
	:: d_step { hb[h] == 1 && !CHANGED(h) -> hb[h] = 2; wrote(h, boot[h]) }
	:: d_step { up[h] && guard[h] && hb[h] == 2 -> /* answered: a write begun inside the lease continues it */
		hb[h] = 0;
		age[h] = (NO_START_OF_WRITE -> 0 : hbAge[h]);
		hbAge[h] = 0;
		leased[h] = leased[h] || (age[h] < OLD && !CHANGED(h)) }
#if LATE
	:: d_step { lateB[h] != 0 -> /* a write of a former boot lands */
		wrote(h, lateB[h]);
		chg[h] = up[h] && lateB[h] != boot[h];
		lateB[h] = 0 }
	:: d_step { up[h] && guard[h] && chg[h] && leased[h] -> hb[h] = 0; hbAge[h] = 0; endLease(h) } /* noticed before the next write */
#endif
	/* --- the lease ends --- */
	:: d_step { up[h] && guard[h] && LAPSED(h) -> endLease(h) }
	od
}

proctype Unit(byte h; byte v) {
	byte i = HV(h,v);
	do
	/* --- freezing, thawing, killing --- */
	:: d_step { up[h] && guard[h] && fzc[i] == ORDERED -> fz[i] = 1; fzc[i] = (IO(i) -> BUSY : FROZEN) }
	:: d_step { up[h] && guard[h] && thawP[i] ->
		thawP[i] = 0;
		fz[i] = ((NO_BEFORE_THAW || age[h] < OLD) -> 0 : fz[i]);
		check(h, v) }
	:: d_step { READY(h) && lk[i] == LLOST && !IO(i) && st[i] == CIDLE ->
		proc[i] = PNONE; FRESH(i); contP[i] = 0; startP[i] = 0; lk[i] = LNONE; fz[i] = 0; fzc[i] = UNFROZEN; thawP[i] = 0 }
#if DISK
	/* --- the guest --- */
	:: d_step { RUNS(i) && !io[i] -> io[i] = 1; check(h, v) }
	:: d_step { io[i] -> io[i] = 0; fzc[i] = (fzc[i] == BUSY -> FROZEN : fzc[i]) }
#endif
	/* --- the agent: start, continue, stop --- */
	:: d_step { NO_LOCK && up[h] && proc[i] == PNONE && lk[i] == LNONE -> proc[i] = PRUN; check(h, v) }
	:: d_step { up[h] && startP[i] && proc[i] == PNONE -> startP[i] = 0; proc[i] = (NO_PAUSED_START -> PRUN : PPAUSED); check(h, v) }
	:: d_step { READY(h) && SCANNED(h) && proc[i] == PPAUSED && !contP[i] && lk[i] == LHELD && leased[h] -> contP[i] = 1 }
	:: d_step { up[h] && contP[i] -> contP[i] = 0; proc[i] = PRUN; check(h, v) }
	:: d_step { STOP && up[h] && guard[h] && !IO(i) && (proc[i] != PNONE || startP[i]) && st[i] == CIDLE ->
		proc[i] = PNONE; FRESH(i); contP[i] = 0; startP[i] = 0 }
	/* --- chains: list, judge, order the link --- */
	:: d_step { READY(h) && SCANNED(h) && leased[h] && st[i] == CIDLE && ROOM(v) && proc[i] == PNONE && !startP[i] && lk[i] <= LHELD &&
		(tState[v] == RELEASED || (tState[v] == HELD && tOwner[v] == h) || (tState[v] == MISSING && NO_UNKNOWN) ||
		 (judged[v] && OTHERS(h,v) && (NO_ARMED || ARMED(tOwner[v])))) -> order(i, v, KCLAIM) }
#if LATE
	:: d_step { READY(h) && leased[h] && st[i] == CIDLE && ROOM(v) && proc[i] == PNONE && !startP[i] && lk[i] <= LHELD &&
		OTHERS(h,v) && slotBoot[tOwner[v]] != tBoot[v] && slotBoot[tOwner[v]] != 0 ->
		if
		:: NO_BOOT_PROOF -> order(i, v, KCLAIM)
		:: else -> prevE[i] = top[v]; st[i] = CPROOF; pB[i] = slotBoot[tOwner[v]]
		fi }
	:: d_step { READY(h) && st[i] == CPROOF ->
		if
		:: leased[h] && prevE[i] == top[v] && pMv[i] && OTHERS(h,v) && slotBoot[tOwner[v]] == pB[i] && pB[i] != tBoot[v] -> pB[i] = 0; pMv[i] = 0; order(i, v, KCLAIM)
		:: else -> endChain(i)
		fi }
#endif
	:: d_step { STOP && READY(h) && SCANNED(h) && leased[h] && st[i] == CIDLE && ROOM(v) && lk[i] == LHELD && !startP[i] && (NO_RELEASE_GONE || proc[i] == PNONE) ->
		if
		:: MINE(h,v) -> order(i, v, KRELEASE)
		:: else -> lk[i] = LNONE
		fi }
	:: d_step { READY(h) && leased[h] && st[i] == CIDLE && lk[i] == LSUSP && !CHANGED(h) && NO_RECLAIM -> lk[i] = LHELD; fzc[i] = UNFROZEN; thawP[i] = 1 }
	:: d_step { READY(h) && leased[h] && st[i] == CIDLE && lk[i] == LSUSP && !CHANGED(h) && tState[v] != MISSING && !NO_RECLAIM && (ROOM(v) || OTHERS(h,v) || PASSED(i)) ->
		if
		:: (tState[v] == RELEASED && !PASSED(i)) || MINE(h,v) -> order(i, v, KRECLAIM)
		:: else -> lk[i] = LLOST
		fi }
#if KILLS
	:: d_step { READY(h) && leased[h] && SCANNED(h) && st[i] == CIDLE && lk[i] == LNONE && proc[i] != PNONE -> /* whose lock is it? */
		lk[i] = (MINE(h,v) -> LSUSP : LLOST) }
#endif
	/* --- the link lands, whoever still waits for it --- */
	:: d_step { st[i] == CLINK ->
		prevE[i] = (NO_NEXT_EPOCH -> top[v] : prevE[i]);
		if
		:: prevE[i] == top[v] && ROOM(v) -> newTop(v, h, boot[h], (kind[i] >= KRELEASE -> RELEASED : HELD)); topMine[i] = 1; lok[i] = 1
		:: prevE[i] + KEEP < top[v] -> lok[i] = 1 /* the number was pruned: made anew, not the highest */
		:: else -> lok[i] = 0
		fi;
		st[i] = CDONE }
#if ORPHANS
	/* it fails, but may land later */
	:: d_step { READY(h) && st[i] == CLINK && orphE[i] == 0 -> abandon(i, boot[h]); omem[i] = omem[i] || (kind[i] < KRELEASE); lok[i] = 0; st[i] = CDONE }
	:: d_step { orphE[i] != 0 ->
		if
		:: orphE[i] == top[v] + 1 && ROOM(v) ->
			newTop(v, h, orphB[i], (orphRel[i] -> RELEASED : HELD));
			topOrph[i] = !orphRel[i] && orphB[i] == boot[h] && up[h]
		:: else
		fi;
		orphE[i] = 0; orphB[i] = 0; orphRel[i] = 0 }
	/* the guard finds out what became of it: a win for nobody is released */
	:: d_step { READY(h) && leased[h] && st[i] == CIDLE && omem[i] && topOrph[i] && lk[i] == LNONE && proc[i] == PNONE && ROOM(v) ->
		omem[i] = 0; topOrph[i] = 0; order(i, v, KLATE) }
	:: d_step { READY(h) && leased[h] && st[i] == CIDLE && omem[i] && orphE[i] == 0 && (!topOrph[i] || lk[i] != LNONE || proc[i] != PNONE) -> omem[i] = 0; topOrph[i] = 0 }
#endif
	/* --- its answer, or none, is no proof: list again --- */
	:: d_step { READY(h) && st[i] == CDONE -> st[i] = (NO_RELIST -> CREAD : CAGAIN) }
	:: d_step { st[i] == CAGAIN -> st[i] = CREAD; lok[i] = topMine[i] }
	:: d_step { READY(h) && st[i] == CREAD && kind[i] == KCLAIM && lok[i] && (NO_SOUND || (!lap[i] && leased[h])) -> /* won, and somebody waits for it */
		lk[i] = LHELD; startP[i] = 1; thawP[i] = fz[i]; fzc[i] = UNFROZEN; endChain(i) }
	:: d_step { READY(h) && st[i] == CREAD && !(kind[i] == KCLAIM && lok[i]) ->
		if
		:: !lok[i] && kind[i] == KRELEASE -> suspect(i)
#if ORPHANS
		:: !lok[i] && kind[i] == KLATE && MINE(h,v) && lk[i] == LNONE -> topOrph[i] = 1; omem[i] = 1
#endif
		:: !lok[i] -> skip
		:: kind[i] == KRELEASE || kind[i] == KLATE -> lk[i] = (kind[i] == KRELEASE -> LNONE : lk[i])
		:: kind[i] == KRECLAIM && !NO_SOUND && (lap[i] || !leased[h]) -> skip /* ours, but prove it again */
		:: else -> lk[i] = LHELD; fzc[i] = UNFROZEN; thawP[i] = 1
		fi;
		endChain(i) }
	/* won, but nobody waits any more, or the lease ended meanwhile: release it at once */
	:: d_step { READY(h) && st[i] == CREAD && kind[i] == KCLAIM && lok[i] ->
		if
		:: NO_LATE_RELEASE || !ROOM(v) -> endChain(i)
		:: else -> prevE[i] = prevE[i] + 1; kind[i] = KLATE; st[i] = CLINK; topMine[i] = 0; lok[i] = 0; lap[i] = 0
		fi;
		LOCK_PINNED = (ROOM(v) && st[i] == CIDLE && lk[i] == LNONE && MINE(h,v) && !KNOWN(i) && proc[i] == PNONE);
		assert(LOCK_PINNED == 0) }
	od
}

#if NET
proctype Net(byte h) {
	do
	:: d_step { up[h] && guard[h] && net[h] == 0 -> net[h] = 1; nAge[h] = 0 }
	:: d_step { net[h] == 1 -> net[h] = 2; heard[h] = 0 }
	:: d_step { net[h] == 1 -> net[h] = 0; nAge[h] = 0 }
	:: d_step { net[h] == 2 ->
		net[h] = 0;
		cAge[h] = ((up[h] && guard[h]) -> (NO_CONTACT_AGE -> 0 : (nAge[h] < cAge[h] -> nAge[h] : cAge[h])) : cAge[h]);
		nAge[h] = 0 }
	od
}
#endif

#define UP1(a, m) a = (a < (m) -> a + 1 : (m))
#define DUE(h)    (up[h] && ARMED(h) && pet[h] >= WMAX)
#if NH > 2
#define ANYDUE (DUE(0) || DUE(1) || DUE(2))
#else
#define ANYDUE (DUE(0) || DUE(1))
#endif

#define BUSYUNIT(i) (proc[i] != PNONE || lk[i] != LNONE || startP[i])
#if NV > 1
#define BUSYHOST(h) (BUSYUNIT(HV(h,0)) || BUSYUNIT(HV(h,1)))
#else
#define BUSYHOST(h) BUSYUNIT(HV(h,0))
#endif

proctype Time() {
	do
	:: d_step { !ANYDUE -> /* a watchdog that is due bites before time goes on */
		x = 0;
		do
		:: x < NH ->
			sight[x] = ((CALM(x) && up[x]) -> 0 : (sight[x] < SMAX -> sight[x] + 1 : SMAX));
			/* a host without VMs: its watchdog adds nothing to a loss of power */
			pet[x] = ((up[x] && ARMED(x) && BUSYHOST(x) && !CALM(x)) -> (pet[x] < WMAX -> pet[x] + 1 : WMAX) : 0);
			age[x] = ((up[x] && age[x] < AMAX && !CALM(x)) -> age[x] + 1 : age[x]);
			hbAge[x] = ((hb[x] != 0 && hbAge[x] < AMAX) -> hbAge[x] + 1 : hbAge[x]);
#if NET
			UP1(heard[x], SMAX);
			cAge[x] = 1;
			nAge[x] = (net[x] != 0);
#endif
			x++
		:: else -> break
		od;
		x = 0;
		do
		:: x < NV ->
			judged[x] = judged[x] || (tState[x] == HELD && sight[tOwner[x]] >= STALE && (NO_SILENCE || HEARD(tOwner[x]) >= SMAX));
			x++
		:: else -> break
		od;
		x = 0 }
	od
}

#if THEFT
proctype Thief() {
	d_step { tState[0] == HELD -> tState[0] = MISSING; tOwner[0] = NONE; tBoot[0] = 0; judged[0] = 0; topMine[0] = 0; topMine[NV] = 0 }
}
#endif

init {
	d_step {
		x = 0;
		do
		:: x < NH ->
			up[x] = 1; boot[x] = 1; guard[x] = 1; leased[x] = 1; slotBoot[x] = 1;
#if KILLS
			scanned[x] = 1;
#endif
#if NET
			cAge[x] = 1;
#endif
			x++
		:: else -> break
		od;
		x = 0;
		do
		:: x < NV -> /* host 0 runs them */
			top[x] = 1; tOwner[x] = 0; tBoot[x] = 1; tState[x] = HELD;
			lk[HV(0,x)] = LHELD; proc[HV(0,x)] = PRUN;
			x++
		:: else -> break
		od;
		x = 0
	}
	atomic {
		run Host(0); run Unit(0, 0); run Host(1); run Unit(1, 0);
#if NV > 1
		run Unit(0, 1); run Unit(1, 1);
#endif
#if NH > 2
		run Host(2); run Unit(2, 0);
#endif
#if NET
		run Net(0); run Net(1);
#endif
#if THEFT
		run Thief();
#endif
		run Time()
	}
}
