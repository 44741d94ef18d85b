package provisioner

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/provisioner/api"
)

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	ovmfTap  = "tap0"
	ovmfMAC  = "52:54:00:98:00:07"
)

// newOVMFLab is a lab whose server's interface is a tap, for a virtual machine.
func newOVMFLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("SEALIFT_VM_TESTS") == "" {
		t.Skip("a virtual machine: set SEALIFT_VM_TESTS=1")
	}
	needTool(t, "qemu-system-x86_64")
	if _, err := os.Stat(ovmfCode); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l := newLab(t)
	l.in(l.server, "ip", "addr", "del", labAddress, "dev", labServerI)
	l.in(l.server, "ip", "tuntap", "add", ovmfTap, "mode", "tap")
	l.in(l.server, "ip", "addr", "add", labAddress, "dev", ovmfTap)
	l.in(l.server, "ip", "link", "set", ovmfTap, "up")
	l.config.Interface = ovmfTap
	l.config.Debug = true
	return l
}

// console collects what a machine prints and ends it at a word.
type console struct {
	mu    sync.Mutex
	out   bytes.Buffer
	words []string
	found chan string
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Write(b)
	for _, w := range c.words {
		if bytes.Contains(c.out.Bytes(), []byte(w)) {
			select {
			case c.found <- w:
			default:
			}
		}
	}
	return len(b), nil
}

// boot switches a machine on whose only device is a network card, and returns
// the first of words that it prints, or "" if it ends or says nothing of it in
// limit.
func (l *lab) boot(limit time.Duration, words []string, args ...string) (word, output string, took time.Duration) {
	l.t.Helper()
	vars := filepath.Join(l.t.TempDir(), "vars.fd")
	template, err := os.ReadFile(ovmfVars)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(vars, template, 0o600); err != nil {
		l.t.Fatal(err)
	}
	args = append([]string{"qemu-system-x86_64", "-machine", "q35,accel=tcg,smm=off", "-cpu", "max", "-m", "512", "-display", "none",
		"-no-reboot", "-monitor", "none", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,readonly=on,file=" + ovmfCode, "-drive", "if=pflash,format=raw,file=" + vars,
		"-netdev", "tap,id=n,ifname=" + ovmfTap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n,romfile=,mac=" + ovmfMAC}, args...)
	c := &console{words: words, found: make(chan string, 1)}
	cmd := l.command(l.server, args...)
	cmd.Stdout, cmd.Stderr = c, c
	start := time.Now()
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case word = <-c.found:
	case <-ended:
		select {
		case word = <-c.found:
		default:
		}
	case <-time.After(limit):
	}
	took = time.Since(start)
	cmd.Process.Kill()
	<-ended
	c.mu.Lock()
	defer c.mu.Unlock()
	return word, c.out.String(), took
}

// noPXE makes OVMF skip a kind of network boot.
func noPXE(family string) []string {
	return []string{"-fw_cfg", "name=opt/org.tianocore/" + family + "PXESupport,string=no"}
}

const (
	efiGood = "THE PROGRAM ARRIVED WHOLE"
	efiBad  = "THE PROGRAM ARRIVED DAMAGED"
)

func TestOVMFBootsOverTheNetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		log  string
	}{
		{"by PXE and TFTP", noPXE("IPv6"), `msg="tftp transfer done"`},
		{"by HTTP", append(noPXE("IPv6"), noPXE("IPv4")...), `method=GET path=/boot/installer.efi`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newOVMFLab(t)
			l.write("installer.efi", efiProgram(8<<20, efiGood, efiBad))
			p := l.mustServe()
			word, out, took := l.boot(3*time.Minute, []string{efiGood, efiBad}, c.args...)
			if word != efiGood {
				t.Fatalf("the machine printed %q:\n%s\n%s", word, out, p.logged())
			}
			t.Logf("%v from power-on to the program", took.Round(time.Second))
			if !strings.Contains(p.logged(), c.log) {
				t.Errorf("the server's log lacks %s:\n%s", c.log, p.logged())
			}
			if strings.Contains(p.logged(), "level=WARN") {
				t.Errorf("the server warned:\n%s", p.logged())
			}
		})
	}
}

// A box that is installed and still asks the network first has to get to its
// disk. Here the next boot option is another kind of network boot, which is as
// good as a disk to see that the firmware goes on.
func TestOVMFOfAnInstalledHostGoesOn(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		next string
	}{
		{"from PXE", noPXE("IPv6"), ">>Start HTTP Boot over IPv4"},
		{"from HTTP", append(noPXE("IPv6"), noPXE("IPv4")...), ">>Start HTTP Boot over IPv6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newOVMFLab(t)
			l.write("installer.efi", efiProgram(1<<20, efiGood, efiBad))
			hosts, err := OpenFileHosts(filepath.Join(l.dir, "hosts"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = hosts.Update(t.Context(), api.HostKey{MAC: ovmfMAC}, func(h *Host) error {
				h.State, h.Installed, h.Record, h.Delivered = Installed, time.Now(), json.RawMessage(`{}`), true
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := hosts.Close(); err != nil {
				t.Fatal(err)
			}
			p := l.mustServe()
			word, out, took := l.boot(4*time.Minute, []string{efiGood, c.next}, c.args...)
			if word != c.next || !strings.Contains(out, diskBootFile) {
				t.Fatalf("the machine printed %q:\n%s\n%s", word, out, p.logged())
			}
			t.Logf("%v from power-on to the next boot option", took.Round(time.Second))
		})
	}
}
