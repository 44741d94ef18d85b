// Package tpmtest gives tests a TPM 2.0 of their own: a swtpm process with a
// fresh state, endorsement keys, and endorsement certificates of a throw-away
// authority. Open is ready in about a second, most of which goes into the
// RSA endorsement key.
//
// It needs swtpm and swtpm_setup (Debian: swtpm-tools). A test is skipped
// where they are missing, and fails instead if REQUIRE_TOOLS is set.
package tpmtest

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Config says what kind of TPM to make. The zero value is what swtpm_setup
// makes by itself, with the banks sha1 and sha256.
type Config struct {
	// Banks are the active PCR banks; sha1 and sha256 if empty.
	Banks []string
	// NoCertificates leaves the TPM without endorsement certificates.
	NoCertificates bool
	// P256Certificate adds a certificate for the ECC P-256 endorsement key at
	// NV index 0x01c0000a, which swtpm_setup does not make by itself.
	P256Certificate bool
	// Chain stores the issuing authority's certificate in NV index 0x01c00100.
	Chain bool
	// RSABits is the size of the RSA endorsement key; 2048 if 0. Its certificate is
	// at NV index 0x01c0001c with 3072 bits.
	RSABits int
	// CA is the authority to issue the certificates; a new one if nil.
	CA *CA
}

// TPM is a running swtpm. It implements transport.TPM. It ends with the test.
type TPM struct {
	transport.TPM
	// CA issued the endorsement certificates.
	CA *CA
	// Socket is the path of the command channel. The control channel is beside
	// it as Socket + ".ctrl", where the swtpm TCTI of the tpm2-tss expects it.
	Socket string

	tb testing.TB
}

// Open starts a TPM with the default Config.
func Open(tb testing.TB) *TPM { return Config{}.Open(tb) }

// Open starts a TPM.
func (c Config) Open(tb testing.TB) *TPM {
	tb.Helper()
	swtpm, setup, localca := Tool(tb, "swtpm"), Tool(tb, "swtpm_setup"), Tool(tb, "swtpm_localca")
	if len(c.Banks) == 0 {
		c.Banks = []string{"sha1", "sha256"}
	}
	if c.CA == nil {
		c.CA = NewCA(tb)
	}
	// Not tb.TempDir: its path holds the test's name and can be longer than
	// the 107 bytes that the address of a Unix socket has room for.
	dir, err := os.MkdirTemp("", "tpmtest-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		tb.Fatal(err)
	}
	args := []string{"--tpm2", "--tpm-state", state, "--createek", "--pcr-banks", strings.Join(c.Banks, ","),
		"--config", c.CA.configure(tb, dir, localca)}
	if !c.NoCertificates {
		args = append(args, "--create-ek-cert")
	}
	if c.RSABits != 0 {
		args = append(args, "--rsa-keysize", strconv.Itoa(c.RSABits))
	}
	if out, err := exec.Command(setup, args...).CombinedOutput(); err != nil {
		tb.Fatalf("tpmtest: swtpm_setup: %v\n%s", err, out)
	}

	d := &TPM{CA: c.CA, Socket: filepath.Join(dir, "tpm"), tb: tb}
	d.start(swtpm, state)
	if c.P256Certificate {
		c.CA.certifyP256(tb, d)
	}
	if c.Chain {
		d.DefineNV(nvChain, c.CA.Issuer.Raw)
	}
	return d
}

// OpenState starts a TPM that was made elsewhere, from a copy of the directory in
// which swtpm keeps its state: that one stays as it is.
func OpenState(tb testing.TB, state string) *TPM {
	tb.Helper()
	dir, err := os.MkdirTemp("", "tpmtest-") // see Open
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	copied := filepath.Join(dir, "state")
	if err := os.CopyFS(copied, os.DirFS(state)); err != nil {
		tb.Fatal(err)
	}
	d := &TPM{Socket: filepath.Join(dir, "tpm"), tb: tb}
	d.start(Tool(tb, "swtpm"), copied)
	return d
}

// start runs swtpm until the test ends. A shell stands between, reading from a
// pipe that the test process holds: when that process dies without cleaning
// up, as it does at a test timeout, the pipe closes and swtpm is ended.
func (d *TPM) start(swtpm, state string) {
	d.tb.Helper()
	cmd := exec.Command("sh", "-c", `"$@" & p=$!; cat >/dev/null; kill $p; wait $p`, "sh",
		swtpm, "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+d.Socket, "--ctrl", "type=unixio,path="+d.Socket+".ctrl",
		"--flags", "not-need-init,startup-clear")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.tb.Fatalf("tpmtest: start swtpm: %v", err)
	}
	d.tb.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
		// swtpm notes the end of each connection, and each command has its own.
		said := strings.TrimSpace(strings.ReplaceAll(log.String(), "swtpm: Data client disconnected\n", ""))
		if d.tb.Failed() && said != "" {
			d.tb.Logf("%s", said)
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := net.Dial("unix", d.Socket)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("tpmtest: swtpm did not open %s: %v", d.Socket, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t, err := linuxudstpm.Open(d.Socket)
	if err != nil {
		d.tb.Fatalf("tpmtest: open swtpm: %v", err)
	}
	d.tb.Cleanup(func() { t.Close() })
	d.TPM = t
}

// Reset reboots the machine in an orderly way: TPM2_Shutdown(CLEAR), TPM
// reset, TPM2_Startup(CLEAR). PCRs, loaded objects and the NULL seed are gone
// and resetCount is one higher.
func (d *TPM) Reset() {
	d.tb.Helper()
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(d); err != nil {
		d.tb.Fatalf("tpmtest: TPM2_Shutdown: %v", err)
	}
	d.PowerLoss()
}

// PowerLoss is Reset without TPM2_Shutdown, after which the TPM reports its
// clock as not safe for a while.
func (d *TPM) PowerLoss() {
	d.tb.Helper()
	if err := d.control(cmdInit, 0); err != nil {
		d.tb.Fatalf("tpmtest: reset swtpm: %v", err)
	}
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(d); err != nil {
		d.tb.Fatalf("tpmtest: TPM2_Startup: %v", err)
	}
}

// cmdInit is CMD_INIT of swtpm's control channel (swtpm_ioctls(3)): it powers
// the TPM off and on. Its argument is a set of flags.
const cmdInit = 2

// control sends one command with one 32-bit argument to swtpm's control channel.
func (d *TPM) control(cmd, arg uint32) error {
	conn, err := net.Dial("unix", d.Socket+".ctrl")
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, cmd), arg)); err != nil {
		return err
	}
	var res [4]byte
	if _, err := io.ReadFull(conn, res[:]); err != nil {
		return fmt.Errorf("read result of control command %d: %w", cmd, err)
	}
	if rc := binary.BigEndian.Uint32(res[:]); rc != 0 {
		return fmt.Errorf("control command %d: result %#x", cmd, rc)
	}
	return nil
}

// Allocate activates exactly these banks from the next reset on
// (TPM2_PCR_Allocate), as firmware does when it is told to in its setup.
func (d *TPM) Allocate(banks ...string) {
	d.tb.Helper()
	var all []string
	for _, b := range []string{"sha1", "sha256", "sha384", "sha512"} {
		pcrs := "none"
		if slices.Contains(banks, b) {
			pcrs = "all"
		}
		all = append(all, b+":"+pcrs)
	}
	out, err := exec.Command(Tool(d.tb, "tpm2_pcrallocate"), "-T", "swtpm:path="+d.Socket, strings.Join(all, "+")).CombinedOutput()
	if err != nil {
		d.tb.Fatalf("tpmtest: tpm2_pcrallocate: %v\n%s", err, out)
	}
}

// Extend extends PCR index of every active bank with the bank's hash of data
// (TPM2_PCR_Event), as firmware does.
func (d *TPM) Extend(index int, data []byte) {
	d.tb.Helper()
	_, err := tpm2.PCREvent{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)},
		EventData: tpm2.TPM2BEvent{Buffer: data},
	}.Execute(d)
	if err != nil {
		d.tb.Fatalf("tpmtest: TPM2_PCR_Event of PCR %d: %v", index, err)
	}
}

// PCR returns the value of a PCR of the bank sha1, sha256, sha384 or sha512.
func (d *TPM) PCR(bank string, index int) []byte {
	d.tb.Helper()
	algs := map[string]tpm2.TPMAlgID{"sha1": tpm2.TPMAlgSHA1, "sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512}
	rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: algs[bank], PCRSelect: tpm2.PCClientCompatible.PCRs(uint(index)),
	}}}}.Execute(d)
	if err != nil || len(rsp.PCRValues.Digests) != 1 {
		d.tb.Fatalf("tpmtest: TPM2_PCR_Read of %s PCR %d: %v", bank, index, err)
	}
	return rsp.PCRValues.Digests[0].Buffer
}

// Objects returns the number of loaded transient objects and sessions, for
// tests that nothing was left behind.
func (d *TPM) Objects() int {
	d.tb.Helper()
	n := 0
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(d)
		if err != nil {
			d.tb.Fatalf("tpmtest: TPM2_GetCapability(handles %#x): %v", first, err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			d.tb.Fatal(err)
		}
		n += len(list.Handle)
	}
	return n
}

// CertificatesPEM returns the root and the issuing certificate of the
// authority behind the endorsement certificates.
func (d *TPM) CertificatesPEM() []byte {
	var b []byte
	for _, c := range []*x509.Certificate{d.CA.Root, d.CA.Issuer} {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// Tool returns the path of a program that a test needs. It skips the test
// where the program is missing, or fails it if REQUIRE_TOOLS is set.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("REQUIRE_TOOLS") != "" {
		tb.Fatalf("%s is needed: %v", name, err)
	}
	tb.Skipf("%s is needed: %v", name, err)
	return ""
}
