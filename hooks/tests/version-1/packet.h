/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Reading a packet: the network header by direct access, the ports behind it only where someone asks for them.
 */
#ifndef WEFT_PACKET_H
#define WEFT_PACKET_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "pods.h"

/* RFC 8200, 4.5. */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* and, in the lowest bit, whether more follow */
	__be32 id;
};

/* ICMP and ICMPv6 echo (RFC 792, RFC 4443); linux/icmp.h draws in the C library's headers. */
struct echo {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
};

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

enum fragment { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

/* What the network header says. */
struct packet {
	struct address src;
	struct address dst;
	__u16 mac[3]; /* Ethernet source */
	__u16 l4; /* where the transport header, or the first IPv6 extension header, begins */
	__u8 proto;
	__u8 fragment;
};

/* The first `len` bytes of the packet, or NULL if it has fewer. */
static __always_inline void *head(struct __sk_buff *skb, __u32 len)
{
	void *data = (void *)(long)skb->data;

	if (data + len <= (void *)(long)skb->data_end)
		return data;
	if (bpf_skb_pull_data(skb, len))
		return 0;
	data = (void *)(long)skb->data;
	return data + len <= (void *)(long)skb->data_end ? data : 0;
}

static __always_inline void copy_mac(__u16 to[3], const __u8 *mac)
{
	const __u16 *from = (const __u16 *)mac;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
}

static __always_inline bool same_mac(const __u16 a[3], const __u8 *mac)
{
	const __u16 *b = (const __u16 *)mac;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]));
}

static __always_inline struct address mapped(__be32 ip)
{
	return (struct address){ .word = { 0, 0, bpf_htonl(0xffff), ip } };
}

static __always_inline bool read_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth = head(skb, sizeof(*eth) + sizeof(struct iphdr));
	struct iphdr *ip = (void *)(eth + 1);

	if (!eth)
		return false;
	copy_mac(p->mac, eth->h_source);
	p->src = mapped(ip->saddr);
	p->dst = mapped(ip->daddr);
	p->l4 = sizeof(*eth) + ip->ihl * 4;
	p->proto = ip->protocol;
	/* RFC 791: 13 bits of offset, above them "more fragments". */
	if (ip->frag_off & bpf_htons(0x1fff))
		p->fragment = LATER_FRAGMENT;
	else if (ip->frag_off & bpf_htons(0x2000))
		p->fragment = FIRST_FRAGMENT;
	return true;
}

static __always_inline bool read_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth = head(skb, sizeof(*eth) + sizeof(struct ipv6hdr));
	struct ipv6hdr *ip = (void *)(eth + 1);

	if (!eth)
		return false;
	copy_mac(p->mac, eth->h_source);
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->l4 = sizeof(*eth) + sizeof(*ip);
	p->proto = ip->nexthdr;
	return true;
}

enum readable {
	FLOW, /* the ports are read */
	NO_FLOW, /* a later fragment, or ICMP that is no echo: it belongs to a flow that other packets name */
	UNREADABLE, /* extension headers, or cut short */
};

/*
 * Read the ports of a packet. A protocol without ports, and ICMP echo with its identifier, are flows too. Notes in p->fragment
 * what an IPv6 fragment header says.
 */
static __always_inline enum readable read_ports(struct __sk_buff *skb, struct packet *p, __u16 ports[2])
{
	struct echo echo;

	if (skb->protocol == bpf_htons(ETH_P_IPV6) && p->proto == IPPROTO_FRAGMENT) {
		struct fragment_header frag;

		if (bpf_skb_load_bytes(skb, p->l4, &frag, sizeof(frag)))
			return UNREADABLE;
		p->fragment = frag.offset & bpf_htons(0xfff8) ? LATER_FRAGMENT : FIRST_FRAGMENT;
		p->proto = frag.next;
		p->l4 += sizeof(frag);
	}
	if (p->fragment == LATER_FRAGMENT)
		return NO_FLOW;
	switch (p->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_UDPLITE:
		return bpf_skb_load_bytes(skb, p->l4, ports, 4) ? UNREADABLE : FLOW;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: /* echo has its identifier at the same place in both */
		if (bpf_skb_load_bytes(skb, p->l4, &echo, sizeof(echo)))
			return UNREADABLE;
		if (p->proto == IPPROTO_ICMP ? echo.type != ICMP_ECHO_REQUEST && echo.type != ICMP_ECHO_REPLY :
					       echo.type != ICMPV6_ECHO_REQUEST && echo.type != ICMPV6_ECHO_REPLY)
			return NO_FLOW;
		ports[0] = ports[1] = echo.id;
		return FLOW;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
		return UNREADABLE;
	default:
		ports[0] = ports[1] = 0;
		return FLOW;
	}
}

#endif
