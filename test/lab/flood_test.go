package lab_test

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// floodFlag makes the test binary, run inside a host, send random datagrams.
const floodFlag = "send-random-datagrams"

// floodMain is the test binary's other life: ADDRESS RATE DURATION. It prints
// how many datagrams left.
func floodMain(args []string) error {
	rate, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", net.JoinHostPort(args[0], "8182"))
	if err != nil {
		return err
	}
	defer conn.Close()
	const batches = 100 // a second
	tick := time.NewTicker(time.Second / batches)
	defer tick.Stop()
	sent, buf := 0, make([]byte, 200)
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		for range rate / batches {
			if _, err := rand.Read(buf); err != nil {
				return err
			}
			if _, err := conn.Write(buf[:20+int(buf[0])%180]); err == nil {
				sent++
			}
		}
	}
	fmt.Fprintln(os.Stdout, sent)
	return nil
}
