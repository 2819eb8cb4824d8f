/*
 * Powered off by HA: whose wish the end of a guest was.
 *
 * An isolated host stops a VM: first the note on the datastore, then the stop,
 * then the release of the lock with the reason. Its agent may die between any
 * two, its guard may claim the lock anew, users stop guests meanwhile, the
 * isolation ends. The primary restarts what was released for a restart.
 */

#ifndef NO_NOTE_EPOCH    /* a note counts for the epoch of the lock that it names */
#define NO_NOTE_EPOCH 0
#endif
#ifndef NO_RELEASE_ONLY  /* the note alone permits no restart, the release does */
#define NO_RELEASE_ONLY 0
#endif
#ifndef NO_WITHDRAW      /* a note whose stop did not come is withdrawn */
#define NO_WITHDRAW 0
#endif
#ifndef NO_WITHDRAW_LATER /* ... also by the next life of the agent */
#define NO_WITHDRAW_LATER 0
#endif

#ifndef MAXE
#define MAXE 3          /* epochs of the lock */
#endif
#ifndef ISO
#define ISO 2           /* isolations */
#endif
#ifndef LIVES
#define LIVES 3         /* of the agent */
#endif

bit WRONG_RESTART;      /* a VM is started that its user had stopped */

/* the datastore */
byte e = 1;             /* epoch of the VM's lock */
bit  free;              /* released ... */
bit  forHA;             /* ... for a restart */
byte nE;                /* the note: the epoch it names; 0: none */
bit  nW;                /* withdrawn */

/* the guest */
bit  runs = 1;
bit  sd;                /* it was asked to shut down by HA, and may */
bit  byUser;            /* who ended it */
bit  loud;              /* ... with libvirt, which says so */
bit  excused;           /* ... at a moment at which HA was about to, or to take it back */

/* the host */
bit  iso;
byte isos;
bit  agent = 1;
byte lives = 1;
bit  order;             /* this life of the agent stops the VM */
byte inherited;         /* the epoch that a former life looked after */
byte w;                 /* a note: 1 on its way, 2 written */
byte wE;
bit  wW;

inline restart(yes) {
	WRONG_RESTART = (yes && byUser && (loud || !excused));
	assert(WRONG_RESTART == 0)
}

inline begin(k) { w = 1; wE = e; wW = k }

active proctype Agent() {
end:	do
	:: d_step { agent && iso && runs && !order && w == 0 && !free -> begin(0) }
	:: d_step { agent && w == 2 ->
		w = 0;
		if
		:: !wW && iso && wE == e && runs && !order -> order = 1; sd = 1
		:: !wW && (!iso || wE != e) && !NO_WITHDRAW && runs -> begin(1)
		:: else
		fi;
		wE = 0; wE = (w == 1 -> e : 0) }
	/* the isolation is over, and the guest still runs: it was not HA's will */
	:: d_step { agent && !iso && order && runs && !sd && w == 0 -> order = 0;
		if
		:: NO_WITHDRAW
		:: else -> begin(1)
		fi }
	:: d_step { agent && !iso && !order && runs && !sd && w == 0 && inherited == e && nE == e && !nW && !NO_WITHDRAW && !NO_WITHDRAW_LATER -> begin(1) }
	/* the guest has ended: release its lock with the reason */
	:: d_step { agent && !runs && !free && w == 0 ->
		free = 1;
		forHA = !loud && (order || (inherited == e && nE != 0 && (nE == e || NO_NOTE_EPOCH) && !nW));
		restart(forHA) }
	/* the agent dies */
	:: d_step { agent && lives < LIVES -> agent = 0; order = 0; inherited = 0; w = (w == 1 -> 1 : 0); wE = (w == 1 -> wE : 0) }
	:: d_step { !agent && w != 1 -> agent = 1; lives++; w = 0; wE = 0; inherited = (free -> 0 : e) }
	od
}

active proctype World() {
end:	do
	:: d_step { isos < ISO && !iso -> iso = 1; isos++ }
	:: d_step { iso -> iso = 0 }
	/* a note lands, or is lost with its writer */
	:: d_step { w == 1 -> nE = wE; nW = wW; w = 2 }
	:: d_step { w == 1 && !agent -> w = 0; wE = 0 }
	/* guests */
	:: d_step { runs && sd -> runs = 0; sd = 0; byUser = 0 }
	:: d_step { runs && sd -> sd = 0 }	/* it refuses */
	:: d_step { runs -> runs = 0; sd = 0; byUser = 1; loud = 1 }
	:: d_step { runs && !sd -> runs = 0; byUser = 1;
		excused = (iso || order || !agent || w != 0 || (inherited == e && !NO_WITHDRAW_LATER && !NO_WITHDRAW && nE == e && !nW)) }
	/* the guard claims the next epoch: after a lapse of its lease */
	:: d_step { runs && !sd && !order && e < MAXE -> e++; }
	/* a primary that believes a note */
	:: d_step { NO_RELEASE_ONLY && nE == e && !nW && !free && !runs -> restart(1) }
	od
}
