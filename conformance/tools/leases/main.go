// What an address costs in host-local's store, for `make bench`: "leases FOLDER" serves requests from stdin with the store in that folder, each
// a line, and answers each with a line of JSON. ipam/examples/lease.rs is the same program for weft's store, and has the requests.
// What is called is what host-local's main.go calls, without the process around it and the configuration to parse.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

const (
	network = "net"
	device  = "eth0"
)

type bench struct {
	dir    string
	ranges []allocator.RangeSet
	id     string
}

func main() {
	// Every process that uses the folder at the same time is another pod.
	b := bench{os.Args[1], ranges(), id(fmt.Sprint("bench", os.Getpid()))}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var verb string
		var first, start, every int64
		fmt.Sscan(in.Text(), &verb, &first, &start, &every)
		var answer []float64
		switch verb {
		case "fill":
			answer = b.fill(first)
		case "pairs":
			store := b.open()
			answer = repeat(first, func() { b.pair(store) })
			must(store.Close())
		case "opened":
			answer = repeat(first, func() { b.leaseOpened(); b.releaseOpened() })
		case "during":
			answer = b.during(time.Duration(first) * time.Millisecond)
		case "openings":
			answer = b.openings(first, start, every)
		default:
			panic(in.Text() + ": no such request")
		}
		text, err := json.Marshal(answer)
		must(err)
		fmt.Println(string(text))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ranges() (sets []allocator.RangeSet) {
	for _, text := range []string{"10.0.0.0/8", "fd00::/64"} {
		_, subnet, err := net.ParseCIDR(text)
		must(err)
		r := allocator.Range{Subnet: types.IPNet(*subnet)}
		must(r.Canonicalize())
		sets = append(sets, allocator.RangeSet{r})
	}
	return sets
}

// As long as containerd makes them.
func id(name string) string {
	return strings.Repeat("0", 64-len(name)) + name
}

func (b *bench) open() *disk.Store {
	store, err := disk.New(network, b.dir)
	must(err)
	return store
}

func (b *bench) lease(store *disk.Store, id string) {
	for index := range b.ranges {
		_, err := allocator.NewIPAllocator(&b.ranges[index], store, index).Get(id, device, nil)
		must(err)
	}
}

func (b *bench) release(store *disk.Store) {
	for index := range b.ranges {
		must(allocator.NewIPAllocator(&b.ranges[index], store, index).Release(b.id, device))
	}
}

func (b *bench) pair(store *disk.Store) {
	b.lease(store, b.id)
	b.release(store)
}

func (b *bench) leaseOpened() {
	store := b.open()
	b.lease(store, b.id)
	must(store.Close())
}

func (b *bench) releaseOpened() {
	store := b.open()
	b.release(store)
	must(store.Close())
}

// Writes what leases write, without looking each time whether the pod has one already.
func (b *bench) fill(count int64) []float64 {
	store := b.open()
	must(store.Lock())
	for index := range b.ranges {
		next, err := allocator.NewIPAllocator(&b.ranges[index], store, index).GetIter()
		must(err)
		for number := range count {
			address, _ := next.Next()
			_, err := store.Reserve(id(fmt.Sprint(number)), device, address.IP, fmt.Sprint(index))
			must(err)
		}
	}
	must(store.Close())
	return []float64{float64(count)}
}

func (b *bench) during(span time.Duration) []float64 {
	store, times := b.open(), 0.0
	for start := time.Now(); time.Since(start) < span; times++ {
		b.pair(store)
	}
	must(store.Close())
	return []float64{times}
}

func (b *bench) openings(count, start, every int64) (took []float64) {
	for number := range count {
		at := time.Unix(0, start+number*every)
		time.Sleep(time.Until(at))
		took = append(took, repeat(1, b.leaseOpened)...)
		// When the others have leased.
		time.Sleep(time.Until(at.Add(time.Duration(every / 2))))
		b.releaseOpened()
	}
	return took
}

func repeat(count int64, what func()) (took []float64) {
	for range count {
		start := time.Now()
		what()
		took = append(took, float64(time.Since(start).Nanoseconds())/1e3)
	}
	return took
}
