/*
 * The protected list: terms, copies, and orders that come late.
 *
 * NH hosts, one datastore, one VM. A guard holds the list's lock by its lease;
 * its agent learns later that the guard has lost it, and acts until then. Writes
 * of the list land late, also those of primaries that are none any more; orders
 * wait on the network and in their target's queue. As in move.pml, lock.pml
 * proves what a stale slot means: its host has no lease.
 */

#ifndef NO_ACK_HELD      /* a change is confirmed only if the guard holds the list when asked after the write */
#define NO_ACK_HELD 0
#endif
#ifndef NO_COPY          /* a new primary copies the list into its term before it acts */
#define NO_COPY 0
#endif
#ifndef NO_HIGHEST_TERM  /* the copy of the highest term counts */
#define NO_HIGHEST_TERM 0
#endif
#ifndef NO_LIST_NEXT     /* a claim of the list links the number after the one it listed */
#define NO_LIST_NEXT 0
#endif
#ifndef NO_LIST_STALE    /* a list is taken only from an owner that is proven stale */
#define NO_LIST_STALE 0
#endif
#ifndef NO_NAMED_EPOCH   /* an order names the epoch of the VM's lock that it is about */
#define NO_NAMED_EPOCH 0
#endif
#ifndef NO_OWN_TERM      /* a primary writes into its own term */
#define NO_OWN_TERM 0
#endif
#ifndef NO_TERM          /* an order of an old term is refused */
#define NO_TERM 0
#endif
#ifndef NO_TERM_LATE     /* ... when it leaves the queue, not only when it arrives */
#define NO_TERM_LATE 0
#endif

#ifndef NH
#define NH 3
#endif
#ifndef MAXT
#define MAXT 4          /* epochs of the list's lock */
#endif
#ifndef CHANGES
#define CHANGES 1       /* changes that users ask for; the first one: keep the VM stopped */
#endif
#ifndef ORDERS
#define ORDERS 0        /* primaries order starts */
#endif
#ifndef YIELDS
#define YIELDS 1        /* lists are released */
#endif

#define STOPPED 1       /* the bit of the first change */
#define ALL ((1 << CHANGES) - 1)

bit TWO_OWNERS;         /* two guards hold the list */
bit LOST_CHANGE;        /* a primary acts without a change that was confirmed */
bit GHOST_CHANGE;       /* a change comes back that an earlier primary acted without */
bit LATE_ORDER;         /* an order is carried out though its target knew better */

/* the datastore */
byte top = 1;
byte owner = NH;        /* NH: released */
bit  judged;            /* the owner of this epoch was found silent, once and for good */
byte content[MAXT+1];
bit  has[MAXT+1];
byte ve = 1;            /* the VM's lock: odd is released */

/* guards */
bit  leased[NH];
byte gt[NH];            /* the term that the guard holds; 0: none */
bit  lp[NH];            /* a link is on its way ... */
byte lprev[NH];
bit  lap[NH];           /* ... and the lease ended since */

/* agents */
byte at[NH];            /* the term that the agent acts under; 0: none */
byte ph[NH];            /* 1 won, 2 read, 3 acts */
byte mem[NH];
byte ws[NH];            /* a write: 1 on its way, 2 landed, 3 and the guard held the list after it */
byte wt[NH];
byte wb[NH];

/* what is true */
byte issued; byte acked; byte dead;

#if ORDERS
byte cs[NH];            /* an order for this host: 1 on its way, 2 in its queue */
byte cT[NH];
byte cE[NH];
byte known[NH];         /* the highest term that the host knows */
bit  told[NH];          /* it was told that the VM is to stay stopped */
byte orders;
#endif

byte y;

inline owners() {
	y = 0; TWO_OWNERS = 0;
	byte n = 0;
	do
	:: y < NH -> n = n + (gt[y] != 0); y++
	:: else -> break
	od;
	y = 0; TWO_OWNERS = (n > 1); n = 0;
	assert(TWO_OWNERS == 0)
}

inline readList(h) {
	y = MAXT;
	do
	:: y > 0 && !has[y] -> y--
	:: else -> break
	od;
	mem[h] = content[y];
	y = 0
}

inline acts(h) {
	ph[h] = 3;
	/* one that lost the list and does not know it yet acts for nobody: its term is old */
	LOST_CHANGE = (gt[h] == at[h] && (acked & ~mem[h]) != 0);
	GHOST_CHANGE = (gt[h] == at[h] && (mem[h] & dead) != 0);
	dead = (gt[h] == at[h] -> dead | (issued & ~mem[h]) : dead);
	assert(LOST_CHANGE == 0);
	assert(GHOST_CHANGE == 0)
}

proctype Host(byte h) {
end:	do
	/* --- the lease --- */
	:: d_step { leased[h] -> leased[h] = 0; gt[h] = 0; lap[h] = lp[h] }
	:: d_step { !leased[h] -> leased[h] = 1 }
	/* --- the lock of the list --- */
	:: d_step { leased[h] && !lp[h] && gt[h] == 0 && at[h] == 0 && ws[h] == 0 && top < MAXT &&
		(owner == NH || (owner != h && (judged || NO_LIST_STALE))) ->
		lp[h] = 1; lprev[h] = top; lap[h] = 0 }
	:: d_step { lp[h] && top < MAXT && (lprev[h] == top || NO_LIST_NEXT) ->
		top++; owner = h; judged = 0; lp[h] = 0; lprev[h] = 0;
		if
		:: leased[h] && !lap[h] -> gt[h] = top; at[h] = top; ph[h] = 1; owners()
		:: else -> mem[h] = 0 /* a late win: nobody here wants it; silent, it can be taken */
		fi;
		lap[h] = 0 }
	:: d_step { lp[h] && lprev[h] != top && !NO_LIST_NEXT -> lp[h] = 0; lprev[h] = 0; lap[h] = 0; mem[h] = 0 }
	:: d_step { YIELDS && leased[h] && gt[h] != 0 && gt[h] == top && top < MAXT -> top++; owner = NH; judged = 0; gt[h] = 0 }
	:: d_step { leased[h] && gt[h] == 0 && owner == h && !lp[h] && top < MAXT -> top++; owner = NH; judged = 0 }
	/* --- the agent --- */
	:: d_step { at[h] != 0 && gt[h] != at[h] -> at[h] = 0; ph[h] = 0; mem[h] = 0 } /* learns it, sooner or later */
	:: d_step { ph[h] == 1 ->
		readList(h);
		ph[h] = 2;
		if
		:: NO_COPY -> acts(h)
		:: else -> ws[h] = 1; wt[h] = at[h]; wb[h] = mem[h]
		fi }
	:: d_step { NO_HIGHEST_TERM && ph[h] == 1 -> /* an older copy */
		mem[h] = content[1]; ph[h] = 2; ws[h] = 1; wt[h] = at[h]; wb[h] = mem[h] }
	/* a user asks for a change */
	:: d_step { ph[h] == 3 && ws[h] == 0 && issued != ALL ->
		y = (issued & 1) + 1; /* the next bit */
		issued = issued | y; mem[h] = mem[h] | y; y = 0;
		ws[h] = 1; wt[h] = at[h]; wb[h] = mem[h] }
	/* writes land, and are answered */
	:: d_step { ws[h] == 1 ->
		y = (NO_OWN_TERM -> top : wt[h]);
		content[y] = wb[h]; has[y] = 1; y = 0; ws[h] = 2 }
	:: d_step { ws[h] == 2 ->
		ws[h] = 0;
		if
		:: ph[h] == 2 && at[h] == wt[h] -> acts(h)
		:: ph[h] == 3 && at[h] == wt[h] && (gt[h] == at[h] || NO_ACK_HELD) -> ws[h] = 3
		:: else
		fi;
		wt[h] = (ws[h] == 3 -> wt[h] : 0); wb[h] = (ws[h] == 3 -> wb[h] : 0) }
	/* the guard's word, and with it the user's answer, may come any time later */
	:: d_step { ws[h] == 3 ->
		ws[h] = 0; acked = acked | wb[h]; wt[h] = 0; wb[h] = 0;
		LOST_CHANGE = ((acked & dead) != 0);
		assert(LOST_CHANGE == 0) }
#if ORDERS
	/* --- orders --- */
	:: d_step { ph[h] == 3 && !(mem[h] & STOPPED) && (ve & 1) && orders < 2 ->
		y = (h + 1) % NH;
		if
		:: cs[y] == 0 -> orders++; cs[y] = 1; cT[y] = at[h]; cE[y] = ve
		:: else
		fi;
		y = 0 }
	:: d_step { ph[h] == 3 && (mem[h] & STOPPED & acked) -> /* what a primary tells overtakes no order of its own */
		y = (h + 1) % NH;
		if
		:: !(cs[y] != 0 && cT[y] == at[h]) && at[h] >= known[y] -> known[y] = at[h]; told[y] = 1
		:: else
		fi;
		y = 0 }
	:: d_step { cs[h] == 1 ->
		cs[h] = ((cT[h] < known[h] && !NO_TERM) -> 0 : 2);
		known[h] = (cT[h] > known[h] -> cT[h] : known[h]) }
	:: d_step { cs[h] == 2 ->
		if
		:: (cT[h] >= known[h] || NO_TERM || NO_TERM_LATE) && ((ve & 1) && (cE[h] == ve || NO_NAMED_EPOCH)) ->
			LATE_ORDER = (told[h] || cE[h] != ve);
			ve++;
			assert(LATE_ORDER == 0)
		:: else
		fi;
		cs[h] = 0; cT[h] = 0; cE[h] = 0 }
	/* its user powers the VM off */
	:: d_step { h == 0 && !(ve & 1) && ve < 6 -> ve++ }
#endif
	od
}

proctype Primary() {
end:	do
	:: d_step { owner < NH && !judged && !leased[owner] -> judged = 1 }
	od
}

init {
	d_step {
		has[1] = 1; y = 0;
		do
		:: y < NH -> leased[y] = 1; y++
		:: else -> break
		od;
		y = 0
	}
	atomic {
		run Host(0); run Host(1);
#if NH > 2
		run Host(2);
#endif
		run Primary()
	}
}
