// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * from_pod, on clsact ingress of the host's end of a pod's veth pair, sees what the pod sends: it drops what does not
 * bear the pod's own addresses, hands what is meant for another pod of this node straight into that pod, and leaves the
 * rest to the kernel's stack.
 *
 * to_pod, on egress of the same device, sees only what the stack delivers, because the fast path never leaves through
 * there. A packet of another local pod came through the stack for a reason (its destination was translated): its answer
 * must pass the same connection tracking, or it would keep the wrong source address. So to_pod notes the answer's flow,
 * and from_pod sends it through the stack.
 *
 * Both answer TC_ACT_UNSPEC where they have no objection: net/sched/cls_bpf.c then goes on to the next filter, whereas
 * TC_ACT_OK would hide the packet from filters of others behind ours.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "pods.h"

/* Both maps below grow with what is in them: 65,536 preallocated pods would take 7 MB on a node that has ten. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct pod);
} pods SEC(".maps");

/* Apart from `pods`, so that no write of user space can undo a program's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} returns SEC(".maps");

/* The kernel knows LRU hashes only preallocated (kernel/bpf/hashtab.c, htab_map_alloc_check). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u32);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, struct count);
} counters SEC(".maps");

/* By enum drop. Apart from `counters`, which the first version of the programs had already. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_PLACES);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

/* 192 bytes a pod and CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct pod_count);
} pod_counters SEC(".maps");

/* Set at load: whether the kernel has bpf_redirect_peer (5.10). The verifier drops the branch that is never taken. */
const volatile __u8 redirect_peer = 1;

/*
 * Without bpf_redirect_peer a packet leaves through the egress of the other pod's host end, where to_pod would take it for
 * one of the stack's. The mark tells them apart. It cannot reach or leave a pod: crossing namespaces clears it
 * (net/core/skbuff.c, skb_scrub_packet).
 */
#define FAST_PATH_MARK 0x77656674

#define ICMPV6_MLD_FIRST 130 /* query, report, done */
#define ICMPV6_MLD_LAST 132
#define ICMPV6_ROUTER_SOLICIT 133
#define ICMPV6_ROUTER_ADVERT 134
#define ICMPV6_NEIGHBOUR_SOLICIT 135
#define ICMPV6_NEIGHBOUR_ADVERT 136
#define ICMPV6_REDIRECT 137
#define ICMPV6_MLD2_REPORT 143

/* ARP for IPv4 on Ethernet (RFC 826); linux/if_arp.h draws in the C library's headers. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_ip[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_ip[4];
};

#define ARP_ETHERNET 1

/* What is to become of a packet: an enum outcome, with an enum drop above it where that is DROPPED. */
typedef __u32 verdict;

#define DROP(reason) (DROPPED | (reason) << 8)
#define OUTCOME(verdict) ((verdict) & 3)
#define REASON(verdict) ((verdict) >> 8 & (DROP_PLACES - 1))

/*
 * The number, below `places`, which is a power of two, and known to be so even to a verifier that forgets the bounds of what is
 * spilled (Linux 6.1): the compiler would leave the mask out.
 */
static __always_inline __u32 below(__u32 places, __u32 number)
{
	barrier_var(number);
	return number & (places - 1);
}

/* Node-wide and for the pod. The node's sums are no sums over pods, so they never go back when a pod leaves. */
static __always_inline void count(struct __sk_buff *skb, verdict verdict)
{
	__u32 link = skb->ifindex, outcome = OUTCOME(verdict), reason = REASON(verdict);
	struct pod_count *pod = bpf_map_lookup_elem(&pod_counters, &link);
	struct count *node = bpf_map_lookup_elem(&counters, &outcome);
	__u64 *drop;

	if (node) {
		node->packets++;
		node->bytes += skb->len;
	}
	if (pod) {
		struct count *own = &pod->outcomes[below(OUTCOMES, OUTCOME(verdict))];

		own->packets++;
		own->bytes += skb->len;
	}
	if (outcome != DROPPED)
		return;
	if (pod)
		pod->drops[below(DROP_PLACES, REASON(verdict))]++;
	else if (reason == SOURCE_ADDRESS)
		reason = DETACHED;
	drop = bpf_map_lookup_elem(&drops, &reason);
	if (drop)
		++*drop;
}

/* A probe (RFC 5227) has no sender address yet, so it claims none. */
static __always_inline verdict judge_arp(struct __sk_buff *skb)
{
	struct ethhdr *eth = head(skb, sizeof(*eth) + sizeof(struct arp));
	struct arp *arp = (void *)(eth + 1);
	struct address src;
	struct pod *pod;
	__u16 mac[3];
	__be32 ip;

	if (!eth)
		return DROP(TRUNCATED);
	if (arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != ETH_ALEN || arp->protocol_len != sizeof(ip))
		return DROP(BAD_ARP);
	copy_mac(mac, eth->h_source);
	if (!same_mac(mac, arp->sender_mac))
		return DROP(BAD_ARP);
	__builtin_memcpy(&ip, arp->sender_ip, sizeof(ip));
	if (!ip)
		return PASSED;
	src = mapped(ip);
	pod = bpf_map_lookup_elem(&pods, &src);
	return pod && pod->ifindex == skb->ifindex && same_mac(mac, pod->mac) ? PASSED : DROP(BAD_ARP);
}

/*
 * What bears no address of the pod is let out as link maintenance: an IPv6 packet sent from :: or a link-local address, and one
 * of the ICMPv6 messages by which a host joins groups and finds neighbours. Never what a router says (RFC 4861: router
 * advertisement, redirect): a pod is none. These only ever reach the stack.
 */
static __always_inline verdict judge_stranger(struct __sk_buff *skb, const struct packet *p)
{
	bool unspecified = !(p->src.word[0] | p->src.word[1] | p->src.word[2] | p->src.word[3]);
	bool link_local = (p->src.word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
	__u32 at = p->l4;
	__u8 options[2] = { p->proto, 0 };
	__u8 type;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return p->src.word[3] ? DROP(SOURCE_ADDRESS) : DROP(LINK_LOCAL);
	if (!unspecified && !link_local)
		return DROP(SOURCE_ADDRESS);
	if (p->proto == IPPROTO_HOPOPTS) { /* multicast listener messages have the router alert option (RFC 2710) */
		if (bpf_skb_load_bytes(skb, at, options, sizeof(options)) || options[1])
			return DROP(LINK_LOCAL);
		at += 8;
	}
	if (options[0] != IPPROTO_ICMPV6 || bpf_skb_load_bytes(skb, at, &type, sizeof(type)))
		return DROP(LINK_LOCAL);
	if (type == ICMPV6_ROUTER_ADVERT || type == ICMPV6_REDIRECT)
		return DROP(ROUTER);
	if ((type >= ICMPV6_MLD_FIRST && type <= ICMPV6_ROUTER_SOLICIT) || type == ICMPV6_NEIGHBOUR_SOLICIT ||
	    type == ICMPV6_NEIGHBOUR_ADVERT || type == ICMPV6_MLD2_REPORT)
		return PASSED;
	return DROP(LINK_LOCAL);
}

/* Whether a packet between two pods must take the way through the stack. */
static __always_inline bool must_return(struct __sk_buff *skb, struct packet *p)
{
	__u32 *returning = bpf_map_lookup_elem(&returns, &p->src);
	struct flow flow = {};
	__u16 ports[2];

	if (!returning)
		return false;
	if (*returning >= RETURN_ALL || read_ports(skb, p, ports) != FLOW || p->fragment != WHOLE)
		return true;
	flow.src = p->src;
	flow.dst = p->dst;
	flow.src_port = ports[0];
	flow.dst_port = ports[1];
	flow.proto = p->proto;
	return bpf_map_lookup_elem(&flows, &flow);
}

/* What cannot be checked is not let out: a pod speaks IP and ARP, and has no VLANs. A packet for `to` bears its addresses then. */
static __always_inline verdict judge(struct __sk_buff *skb, struct pod **to)
{
	struct packet p = {};
	struct pod *from;

	if (skb->vlan_present)
		return DROP(VLAN);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(skb, &p))
			return DROP(TRUNCATED);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_ipv6(skb, &p))
			return DROP(TRUNCATED);
	} else if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		return judge_arp(skb);
	} else {
		return DROP(PROTOCOL);
	}

	from = bpf_map_lookup_elem(&pods, &p.src);
	if (!from || from->ifindex != skb->ifindex)
		return judge_stranger(skb, &p);
	if (!same_mac(p.mac, from->mac))
		return DROP(SOURCE_MAC);
	*to = bpf_map_lookup_elem(&pods, &p.dst);
	if (!*to || (from->flags | (*to)->flags) & POD_STACK)
		return PASSED;
	if (must_return(skb, &p))
		return RETURNED;
	/* mac and host_mac in one: destination and source of an Ethernet header. */
	if (bpf_skb_store_bytes(skb, 0, (*to)->mac, sizeof((*to)->mac) + sizeof((*to)->host_mac), 0))
		return PASSED;
	return REDIRECTED;
}

SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	struct pod *to = 0;
	verdict verdict = judge(skb, &to);

	count(skb, verdict);
	if (OUTCOME(verdict) == DROPPED)
		return TC_ACT_SHOT;
	if (OUTCOME(verdict) != REDIRECTED || !to)
		return TC_ACT_UNSPEC;
	if (redirect_peer)
		return bpf_redirect_peer(to->ifindex, 0);
	skb->mark = FAST_PATH_MARK;
	return bpf_redirect(to->ifindex, 0);
}

/* Only ever raises the value, whoever else writes at the same time. */
static __always_inline void mark_returning(const struct address *pod, __u32 value)
{
	__u32 *now = bpf_map_lookup_elem(&returns, pod);

	if (!now) {
		bpf_map_update_elem(&returns, pod, &value, BPF_NOEXIST);
		now = bpf_map_lookup_elem(&returns, pod);
	}
	if (now && *now < value)
		*now = value;
}

SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow answer = {};
	struct pod *from;
	__u16 ports[2];
	__u32 seen = 1;

	/* Whatever way this program was loaded for: while programs are replaced, from_pod may still go the other one. */
	if (skb->mark == FAST_PATH_MARK)
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(skb, &p))
			return TC_ACT_UNSPEC;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_ipv6(skb, &p))
			return TC_ACT_UNSPEC;
	} else {
		return TC_ACT_UNSPEC;
	}
	from = bpf_map_lookup_elem(&pods, &p.src);
	if (!from || from->ifindex == skb->ifindex)
		return TC_ACT_UNSPEC;

	switch (read_ports(skb, &p, ports)) {
	case FLOW:
		answer.src = p.dst;
		answer.dst = p.src;
		answer.src_port = ports[1];
		answer.dst_port = ports[0];
		answer.proto = p.proto;
		/* A look keeps the entry fresh; the flow is there before the mark that makes from_pod look for it. */
		if (!bpf_map_lookup_elem(&flows, &answer))
			bpf_map_update_elem(&flows, &answer, &seen, BPF_ANY);
		mark_returning(&p.dst, RETURN_FLOWS);
		break;
	case UNREADABLE:
		mark_returning(&p.dst, RETURN_ALL);
		break;
	case NO_FLOW:
		break;
	}
	return TC_ACT_UNSPEC;
}

/* The kernel's word for GPL-2.0-only (include/linux/license.h). No helper used here asks for it. */
char LICENSE[] SEC("license") = "GPL v2";
