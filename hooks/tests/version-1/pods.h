/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The maps that the programs and user space share: the one definition of every key and value.
 *
 * src/pods.rs reads and writes the same bytes; both sides assert the sizes. A change of any layout here needs a higher
 * LAYOUT_VERSION in src/fastpath.rs; a use of spare bytes that an older program may ignore does not.
 *
 * Integers are in the byte order of the host, addresses and ports in that of the network.
 */
#ifndef WEFT_PODS_H
#define WEFT_PODS_H

#include <linux/types.h>

/* An IPv6 address, or an IPv4 address mapped into ::ffff:0:0/96: one map serves both families. */
struct address {
	__u32 word[4];
};

/* Bits of pod.flags, set by user space. */
enum pod_flag {
	/* Packets from and to this pod go through the kernel's stack, always. */
	POD_STACK = 1 << 0,
};

/* Value of `pods`; only user space writes it. Zeroes in spare mean "as before". */
struct pod {
	__u8 version; /* of this value: 1 */
	__u8 flags; /* enum pod_flag */
	__u16 spare0;
	__u32 ifindex; /* of the host's end of the pod's veth pair */
	/* In the order of an Ethernet header, so that one store rewrites both. */
	__u8 mac[6]; /* of the pod's end */
	__u8 host_mac[6]; /* of the host's end */
	__u8 spare1[12];
};

/* Value of `returns`; only programs write it, user space deletes it when the address changes hands. It only grows. */
enum returning {
	RETURN_FLOWS = 1, /* packets of this pod that match `flows`, or cannot be parsed, go through the stack */
	RETURN_ALL = 2, /* something unreadable reached this pod through the stack: so does everything it sends */
};

/* Key of `flows`: the packets which must take the stack, as their sender writes them. */
struct flow {
	struct address src;
	struct address dst;
	__u16 src_port; /* TCP, UDP, SCTP…; the identifier of an ICMP echo; else 0 */
	__u16 dst_port;
	__u8 proto;
	__u8 zero[3];
};

/* Index into `counters`: what became of a packet that a pod sent. */
enum outcome {
	REDIRECTED, /* straight into the other pod */
	PASSED, /* to the kernel's stack */
	DROPPED, /* not sent from an address of the pod */
	RETURNED, /* to the stack, although for a pod of this node, because its flow came that way */
	OUTCOMES,
};

/* Value of `counters`, one per CPU. A segment that the sender left to be cut later counts as one packet. */
struct count {
	__u64 packets;
	__u64 bytes; /* with the Ethernet header */
};

_Static_assert(sizeof(struct address) == 16, "key of pods and returns");
_Static_assert(sizeof(struct pod) == 32, "value of pods");
_Static_assert(sizeof(struct flow) == 40, "key of flows");
_Static_assert(sizeof(struct count) == 16, "value of counters");

#endif
