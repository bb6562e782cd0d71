// envoy stands in for Envoy in front of several API servers on machines that can't
// pull its image: kind starts it by that name, and writes Envoy's configuration for
// it. Of that it reads the listener's address and the servers' and passes TCP
// connections on, in turn, skipping servers that do not answer.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"
)

// dir is where kind puts the files (sigs.k8s.io/kind, package loadbalancer).
const dir = "/home/envoy"

var address = regexp.MustCompile(`address: "?([^\s"{]+)"?\s+port_value: (\d+)`)

func main() {
	listen, err := await("lds.yaml")
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", listen[0])
	if err != nil {
		log.Fatal(err)
	}
	var turn atomic.Int32
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(c, int(turn.Add(1)&0xffff))
	}
}

// addresses reads the addresses of a configuration file, anew each time, since kind
// replaces it when a node joins.
func addresses(name string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // kind's files
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range address.FindAllStringSubmatch(string(b), -1) {
		found = append(found, net.JoinHostPort(m[1], m[2]))
	}
	if found == nil {
		return nil, fmt.Errorf("%s has no addresses", name)
	}
	return found, nil
}

// await waits for the file to have addresses: kind fills it some time after start.
func await(name string) ([]string, error) {
	var err error
	for range 600 {
		var found []string
		if found, err = addresses(name); err == nil {
			return found, nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return nil, err
}

func serve(c net.Conn, turn int) {
	defer c.Close()
	servers, err := addresses("cds.yaml")
	if err != nil {
		log.Print(err)
		return
	}
	for i := range servers {
		s, err := net.DialTimeout("tcp", servers[(turn+i)%len(servers)], time.Second)
		if err != nil {
			continue
		}
		defer s.Close()
		var both sync.WaitGroup
		both.Go(func() { pass(s, c) })
		both.Go(func() { pass(c, s) })
		both.Wait()
		return
	}
}

// pass copies one direction and tells the other side of its end.
func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}
