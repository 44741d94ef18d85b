package provisioner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pin/tftp/v3"
)

// startTFTP serves files on the loopback.
func startTFTP(t testing.TB, files map[string][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &tftpServer{conn: conn, addr: addr("127.0.0.1"), files: files, mtu: 1500, log: slog.New(slog.DiscardHandler), quiet: &throttle{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(s.sessions) != 0 || len(s.perIP) != 0 {
			t.Errorf("%d sessions of %d addresses are left", len(s.sessions), len(s.perIP))
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// rrq builds a request.
func rrq(file string, options ...string) []byte {
	return []byte("\x00\x01" + strings.Join(append([]string{file, "octet"}, options...), "\x00") + "\x00")
}

// windowClient is a client as edk2's: it acknowledges a window when it is
// full or has a gap, and each block that it cannot use. drop decides what the
// network loses, of DATA and of ACKs.
type windowClient struct {
	conn     *net.UDPConn
	to       *net.UDPAddr
	window   int
	drop     func(out bool) bool
	received int // DATA packets, also the ones that were no use
}

func newWindowClient(t testing.TB, server netip.AddrPort) *windowClient {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &windowClient{conn: conn, to: net.UDPAddrFromAddrPort(server), window: 1, drop: func(bool) bool { return false }}
}

func (c *windowClient) send(b []byte) error {
	if c.drop(true) {
		return nil
	}
	_, err := c.conn.WriteToUDP(b, c.to)
	return err
}

// fetch asks for a file and returns it, with the OACK if there was one.
func (c *windowClient) fetch(file string, options ...string) (data []byte, oack string, err error) {
	request := rrq(file, options...)
	if err := c.send(request); err != nil {
		return nil, "", err
	}
	block := 512
	var have uint16
	inWindow, opened := 0, false
	last := request
	buf := make([]byte, 70000)
	for silence := 0; silence < 40; {
		c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, from, err := c.conn.ReadFromUDP(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			silence++
			if err := c.send(last); err != nil {
				return nil, "", err
			}
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if c.drop(false) {
			continue
		}
		silence = 0
		switch op := binary.BigEndian.Uint16(buf); op {
		case tftpERROR:
			return nil, "", fmt.Errorf("error %d: %s", buf[3], bytes.TrimRight(buf[4:n], "\x00"))
		case tftpOACK:
			c.to, oack = from, string(buf[2:n])
			f := strings.Split(oack, "\x00")
			for i := 0; i+1 < len(f); i += 2 {
				switch f[i] {
				case "blksize":
					fmt.Sscan(f[i+1], &block)
				case "windowsize":
					fmt.Sscan(f[i+1], &c.window)
				}
			}
			last = []byte{0, tftpACK, 0, 0}
			if have != 0 {
				continue
			}
		case tftpDATA:
			c.received++
			if !opened {
				c.to, opened = from, true
			}
			number := binary.BigEndian.Uint16(buf[2:])
			if number != have+1 {
				last = []byte{0, tftpACK, byte(have >> 8), byte(have)}
				inWindow = 0
				break
			}
			have++
			inWindow++
			data = append(data, buf[4:n]...)
			final := n-4 < block
			if !final && inWindow < c.window {
				continue
			}
			inWindow = 0
			last = []byte{0, tftpACK, byte(have >> 8), byte(have)}
			if final {
				c.drop = func(bool) bool { return false }
				return data, oack, c.send(last)
			}
		}
		if err := c.send(last); err != nil {
			return nil, "", err
		}
	}
	return nil, "", errors.New("the server is silent")
}

func TestTFTPTransfers(t *testing.T) {
	big := pattern(700_000)
	at := startTFTP(t, map[string][]byte{"installer.efi": big, "even": big[:1468*8], "empty": nil})
	for _, c := range []struct {
		name    string
		file    string
		options []string
		want    []byte
		oack    string
	}{
		{"without options", "installer.efi", nil, big, ""},
		{"as edk2 asks", "installer.efi", []string{"blksize", "1468", "windowsize", "4", "tsize", "0"}, big, "blksize\x001468\x00windowsize\x004\x00tsize\x00700000\x00"},
		{"options in capitals", "installer.efi", []string{"BLKSIZE", "1024", "TSize", "0"}, big, "blksize\x001024\x00tsize\x00700000\x00"},
		{"a file of whole blocks ends in an empty one", "even", []string{"blksize", "1468", "windowsize", "4"}, big[:1468*8], "blksize\x001468\x00windowsize\x004\x00"},
		{"an empty file", "empty", []string{"tsize", "0"}, nil, "tsize\x000\x00"},
		{"more than 65535 blocks", "installer.efi", []string{"blksize", "8", "windowsize", "64"}, big, "blksize\x008\x00windowsize\x0064\x00"},
		{"a window that is too large is lowered", "installer.efi", []string{"windowsize", "65535"}, big, "windowsize\x0064\x00"},
		{"a block that is too large is lowered to the MTU", "installer.efi", []string{"blksize", "65464"}, big, "blksize\x001468\x00"},
		{"the timeout comes back as asked", "installer.efi", []string{"timeout", "3"}, big, "timeout\x003\x00"},
		{"unknown and senseless options are not confirmed", "installer.efi", []string{"multicast", "", "blksize", "7", "windowsize", "0", "timeout", "256", "tsize", "x"}, big, ""},
		{"a doubled option counts once", "installer.efi", []string{"blksize", "512", "blksize", "1024"}, big, "blksize\x00512\x00"},
		{"backslashes", `\boot\installer.efi`, nil, big, ""},
		{"slashes", "//boot//installer.efi", nil, big, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, oack, err := newWindowClient(t, at).fetch(c.file, c.options...)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.want) {
				t.Errorf("got %d bytes that differ from the %d sent", len(got), len(c.want))
			}
			if oack != c.oack {
				t.Errorf("options are confirmed as %q, want %q", oack, c.oack)
			}
		})
	}
}

func TestTFTPRefusals(t *testing.T) {
	at := startTFTP(t, map[string][]byte{"installer.efi": pattern(100)})
	for _, c := range []struct {
		name    string
		request []byte
		want    string
	}{
		{"a file that is not served", rrq("autoexec.ipxe"), "\x00\x05\x00\x01no such file\x00"},
		{"a way out of the directory", rrq("../../etc/passwd"), "\x00\x05\x00\x01no such file\x00"},
		{"no name", rrq(""), "\x00\x05\x00\x01no such file\x00"},
		{"a write", []byte("\x00\x02installer.efi\x00octet\x00"), "\x00\x05\x00\x02nothing can be written here\x00"},
		{"text mode", []byte("\x00\x01installer.efi\x00netascii\x00"), "\x00\x05\x00\x04only mode octet is served\x00"},
		{"a cut-off request", []byte("\x00\x01installer.efi"), "\x00\x05\x00\x04the request is cut off\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := conn.Write(c.request); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 600)
			n, err := conn.Read(buf)
			if err != nil || string(buf[:n]) != c.want {
				t.Errorf("answer is %q, %v, want %q", buf[:n], err, c.want)
			}
		})
	}
}

func TestTFTPSurvivesLoss(t *testing.T) {
	data := pattern(400_000)
	at := startTFTP(t, map[string][]byte{"f": data})
	for _, window := range []string{"1", "4", "32"} {
		t.Run("window "+window, func(t *testing.T) {
			t.Parallel()
			c := newWindowClient(t, at)
			r := rand.New(rand.NewPCG(3, 4))
			c.drop = func(bool) bool { return r.IntN(100) < 2 }
			got, _, err := c.fetch("f", "blksize", "1468", "windowsize", window)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("got %d bytes that differ from the %d sent", len(got), len(data))
			}
		})
	}
}

// A doubled ACK must not double everything that follows it.
func TestTFTPDoubledACKsDoNotMultiply(t *testing.T) {
	data := pattern(200_000)
	at := startTFTP(t, map[string][]byte{"f": data})
	for _, window := range []int{1, 4} {
		t.Run(fmt.Sprint("window ", window), func(t *testing.T) {
			c := newWindowClient(t, at)
			// Every 20th DATA packet is lost: its window is sent again, and
			// what arrived of it twice is acknowledged twice.
			n := 0
			c.drop = func(out bool) bool {
				if out {
					return false
				}
				n++
				return n%20 == 0
			}
			got, _, err := c.fetch("f", "blksize", "1000", "windowsize", fmt.Sprint(window))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("got %d bytes that differ from the %d sent", len(got), len(data))
			}
			blocks := len(data)/1000 + 1
			if most := 2 * blocks; c.received > most {
				t.Errorf("%d packets arrived for %d blocks, want at most %d", c.received, blocks, most)
			}
		})
	}
}

func TestTFTPClientOfAnotherImplementation(t *testing.T) {
	data := pattern(3_000_001)
	at := startTFTP(t, map[string][]byte{"installer.efi": data})
	for _, block := range []int{0, 1428} {
		t.Run(fmt.Sprint("blksize ", block), func(t *testing.T) {
			c, err := tftp.NewClient(at.String())
			if err != nil {
				t.Fatal(err)
			}
			c.RequestTSize(true)
			if block != 0 {
				c.SetBlockSize(block)
			}
			w, err := c.Receive("installer.efi", "octet")
			if err != nil {
				t.Fatal(err)
			}
			if n, ok := w.(tftp.IncomingTransfer).Size(); !ok || n != int64(len(data)) {
				t.Errorf("the size is %d, %v, want %d", n, ok, len(data))
			}
			var got bytes.Buffer
			if _, err := w.WriteTo(&got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), data) {
				t.Errorf("got %d bytes that differ from the %d sent", got.Len(), len(data))
			}
		})
	}
}

func TestTFTPOneClientCannotTakeAllTransfers(t *testing.T) {
	at := startTFTP(t, map[string][]byte{"f": pattern(100_000)})
	buf := make([]byte, 600)
	answered := 0
	for range tftpMaxPerIP + 3 {
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The answers come from other ports, so listen unconnected.
		listen, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer listen.Close()
		if _, err := listen.WriteToUDPAddrPort(rrq("f"), at); err != nil {
			t.Fatal(err)
		}
		listen.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, _, err := listen.ReadFromUDP(buf); err == nil {
			answered++
		}
	}
	if answered != tftpMaxPerIP {
		t.Errorf("%d transfers of one client at once, want %d", answered, tftpMaxPerIP)
	}
}

func FuzzTFTPRequest(f *testing.F) {
	f.Add(rrq("installer.efi", "blksize", "1468", "windowsize", "4", "tsize", "0", "timeout", "3"))
	f.Add([]byte("\x00\x02x\x00octet\x00"))
	f.Add([]byte{0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := parseTFTPRequest(b)
		if err != nil {
			return
		}
		req.fit(1500)
		if req.block < tftpMinBlock || req.block > 1468 || req.window < 1 || req.window > tftpMaxWindow || req.timeout <= 0 || len(req.options) > tftpMaxOptions {
			t.Errorf("%q is accepted as %+v", b, req)
		}
		if len(req.oack(1<<40)) > 512 {
			t.Errorf("%q makes an answer of %d bytes", b, len(req.oack(1<<40)))
		}
		if name := tftpName(req.file); strings.HasPrefix(name, "/") || strings.Contains(name, `\`) {
			t.Errorf("%q becomes the name %q", req.file, name)
		}
		_, _, _ = parseTFTPReply(b)
	})
}

// BenchmarkTFTP sends 64 MB over the loopback, to a client in this process.
func BenchmarkTFTP(b *testing.B) {
	data := make([]byte, 64<<20)
	at := startTFTP(b, map[string][]byte{"f": data})
	for _, window := range []string{"1", "4", "32"} {
		b.Run("blksize=1468/windowsize="+window, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, _, err := newWindowClient(b, at).fetch("f", "blksize", "1468", "windowsize", window); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
