package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestQuotesOfAllBanksPassCheckquote(t *testing.T) {
	checkquote := tpmtest.Tool(t, "tpm2_checkquote")
	d, dev, ev, in := collected(t, tpmtest.Config{Banks: []string{"sha1", "sha256", "sha384"}})
	qualifying := attest.QualifyingData(attest.Binding{
		Purpose: in.Purpose, Nonce: in.Nonce, Exporter: in.Exporter, TransportID: dev.tk.name.Buffer,
	}, ev)
	var banks []string
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// tpm2-tools want the key as a TPM2B_PUBLIC.
	ak := file("ak", tpm2.Marshal(tpm2.BytesAs2B[tpm2.TPMTPublic](ev.AKPublic)))
	for _, q := range ev.Quotes {
		banks = append(banks, q.Bank)
		for _, p := range attest.PolicyPCRs() {
			if !bytes.Equal(q.PCRs[p], d.PCR(q.Bank, p)) {
				t.Errorf("%s PCR %d: got %x, want %x", q.Bank, p, q.PCRs[p], d.PCR(q.Bank, p))
			}
		}
		run := func(qualifying []byte) ([]byte, error) {
			return exec.Command(checkquote, "-u", ak, "-g", "sha256",
				"-m", file("attest", q.Attest), "-s", file("signature", q.Signature),
				"-f", file("pcrs", toolsPCRs(t, q)),
				"-q", hex.EncodeToString(qualifying)).CombinedOutput()
		}
		if out, err := run(qualifying); err != nil {
			t.Errorf("%s: tpm2_checkquote: %v\n%s", q.Bank, err, out)
		}
		if out, err := run(random(32)); err == nil {
			t.Errorf("%s: tpm2_checkquote accepts other qualifying data\n%s", q.Bank, out)
		}
	}
	if got := strings.Join(banks, " "); got != "sha1 sha256 sha384" {
		t.Errorf("got quotes of %s, want sha1 sha256 sha384", got)
	}
	empty(t, d, dev)
}

// toolsPCRs writes the PCRs of a quote as tpm2_quote -o does: a
// TPML_PCR_SELECTION, a count and as many TPML_DIGEST as C structures, little
// endian, with all their unused elements.
func toolsPCRs(t *testing.T, q attest.Quote) []byte {
	t.Helper()
	b, err := bankNamed(q.Bank)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	bits := b.selection(attest.PolicyPCRs()...).PCRSelections[0].PCRSelect
	sel := le.AppendUint16(le.AppendUint32(nil, 1), uint16(b.alg))
	sel = append(append(sel, byte(len(bits))), bits...)
	out := append(sel, make([]byte, 4+16*8-len(sel))...)
	lists := slices.Collect(slices.Chunk(attest.PolicyPCRs(), 8))
	out = le.AppendUint32(out, uint32(len(lists)))
	for _, list := range lists {
		out = le.AppendUint32(out, uint32(len(list)))
		for i := range 8 {
			digest := make([]byte, 2+64)
			if i < len(list) {
				le.PutUint16(digest, uint16(copy(digest[2:], q.PCRs[list[i]])))
			}
			out = append(out, digest...)
		}
	}
	return out
}

func TestTransportKeyIsCertified(t *testing.T) {
	_, dev, ev, in := collected(t, tpmtest.Config{})
	certify, err := tpm2.Unmarshal[tpm2.TPMSAttest](ev.Transport.Certify)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(certify.ExtraData.Buffer, attest.CertifyData(in.Nonce)) {
		t.Errorf("extra data: got %x, want %x", certify.ExtraData.Buffer, attest.CertifyData(in.Nonce))
	}
	info, err := certify.Attested.Creation()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ev.Transport.Public)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(info.ObjectName.Buffer, name.Buffer) || !bytes.Equal(name.Buffer, dev.tk.name.Buffer) {
		t.Errorf("certified name: got %x, want %x", info.ObjectName.Buffer, name.Buffer)
	}
	if !bytes.Equal(info.CreationHash.Buffer, hashed(ev.Transport.CreationData)) {
		t.Errorf("creation hash: got %x, want %x", info.CreationHash.Buffer, hashed(ev.Transport.CreationData))
	}
	policy, err := pcrsig.PolicyDigest("sha256", sha256Quote(t, ev).PCRs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(public.AuthPolicy.Buffer, policy) {
		t.Errorf("policy: got %x, want %x", public.AuthPolicy.Buffer, policy)
	}
	want := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, NoDA: true, Restricted: true, Decrypt: true}
	if public.ObjectAttributes != want {
		t.Errorf("attributes: got %+v, want %+v", public.ObjectAttributes, want)
	}
	creation, err := tpm2.Unmarshal[tpm2.TPMSCreationData](ev.Transport.CreationData)
	if err != nil {
		t.Fatal(err)
	}
	var values []byte
	for _, p := range attest.PolicyPCRs() {
		values = append(values, sha256Quote(t, ev).PCRs[p]...)
	}
	if creation.ParentNameAlg != tpm2.TPMAlgNull || !bytes.Equal(creation.PCRDigest.Buffer, hashed(values)) || !bytes.Equal(creation.OutsideInfo.Buffer, attest.ConnectionData(in.Exporter)) {
		t.Errorf("creation data: got parent %#x, PCR digest %x, outside info %x, want TPM_RH_NULL, %x, %x",
			creation.ParentNameAlg, creation.PCRDigest.Buffer, creation.OutsideInfo.Buffer, hashed(values), attest.ConnectionData(in.Exporter))
	}
}

func TestCollectRefusesBadInput(t *testing.T) {
	d := tpmtest.Open(t)
	dev := New(d)
	if _, err := dev.Collect(t.Context(), input()); !errors.Is(err, errNotIdentified) {
		t.Errorf("before Identify: got %v", err)
	}
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*CollectInput){
		"no purpose":           func(in *CollectInput) { in.Purpose = "" },
		"no nonce":             func(in *CollectInput) { in.Nonce = nil },
		"a short nonce":        func(in *CollectInput) { in.Nonce = in.Nonce[:31] },
		"no exporter":          func(in *CollectInput) { in.Exporter = nil },
		"no event log":         func(in *CollectInput) { in.EventLog = nil },
		"a large event log":    func(in *CollectInput) { in.EventLog = make([]byte, attest.MaxEventLog+1) },
		"a large smbios table": func(in *CollectInput) { in.SMBIOS = make([]byte, attest.MaxSMBIOS+1) },
	} {
		in := input()
		change(&in)
		if _, err := dev.Collect(t.Context(), in); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	most := input()
	most.EventLog, most.SMBIOS = make([]byte, attest.MaxEventLog), make([]byte, attest.MaxSMBIOS)
	if _, err := dev.Collect(t.Context(), most); err != nil {
		t.Errorf("as much as it takes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dev.Collect(ctx, input()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
	empty(t, d, dev)
}

// Of a bank that is off the TPM quotes no PCR, which is how a service knows that
// nothing can be in it.
func TestCollectUsesSHA384WhereSHA256IsOff(t *testing.T) {
	d, dev, ev, _ := collected(t, tpmtest.Config{Banks: []string{"sha1", "sha384"}})
	var got []string
	for _, q := range ev.Quotes {
		a, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Attest)
		if err != nil {
			t.Fatal(err)
		}
		info, err := a.Attested.Quote()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, s := range info.PCRSelect.PCRSelections {
			n += len(selected(info.PCRSelect, s.Hash))
		}
		got = append(got, fmt.Sprintf("%s %d %d", q.Bank, len(q.PCRs), n))
	}
	if want := []string{"sha1 14 14", "sha384 14 14", "sha256 0 0"}; !slices.Equal(got, want) {
		t.Errorf("got quotes of %q (bank, values, PCRs), want %q", got, want)
	}
	policy, err := pcrsig.PolicyDigest("sha384", ev.Quotes[1].PCRs)
	if err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ev.Transport.Public)
	if err != nil || !bytes.Equal(public.AuthPolicy.Buffer, policy) {
		t.Errorf("the transport key has another policy than that of the SHA-384 PCRs: %v", err)
	}
	key, pub := signingKey(t)
	secret := random(32)
	blob, err := dev.SealDeviceHalf(secret, pub)
	if err != nil {
		t.Fatal(err)
	}
	signatures, err := pcrsig.Sign(key, map[string][]byte{"sha256": random(32), "sha384": d.PCR("sha384", 11)})
	if err != nil {
		t.Fatal(err)
	}
	if half, err := dev.UnsealDeviceHalf(blob, pub, signatures); err != nil || !bytes.Equal(half, secret) {
		t.Errorf("device half: %v", err)
	}
	empty(t, d, dev)
}

func TestCollectNeedsSHA256OrSHA384(t *testing.T) {
	for _, bank := range []string{"sha1", "sha512"} {
		d := tpmtest.Config{Banks: []string{bank}}.Open(t)
		dev := New(d)
		if _, err := dev.Identify("test"); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Collect(t.Context(), input()); err == nil || !strings.Contains(err.Error(), "sha256") {
			t.Errorf("%s: got %v, want an error that names the sha256 bank", bank, err)
		}
		empty(t, d, dev)
	}
}

func TestCollectReadsAgainWhenAPCRChangesBeforeTheQuote(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes int
		ok      bool
	}{{"once", 1, true}, {"always", 1000, false}} {
		t.Run(tt.name, func(t *testing.T) {
			d := tpmtest.Open(t)
			left := tt.changes
			dev := New(&interposed{d, func(cc tpm2.TPMCC) {
				if cc == tpm2.TPMCCQuote && left > 0 {
					left--
					d.Extend(0, []byte("changed"))
				}
			}})
			if _, err := dev.Identify("test"); err != nil {
				t.Fatal(err)
			}
			ev, err := dev.Collect(t.Context(), input())
			if !tt.ok {
				if !errors.Is(err, errPCRsChanged) {
					t.Errorf("got %v, want %v", err, errPCRsChanged)
				}
				empty(t, d, dev)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sha256Quote(t, ev).PCRs[0], d.PCR("sha256", 0); !bytes.Equal(got, want) {
				t.Errorf("PCR 0: got %x, want %x", got, want)
			}
			if _, err := dev.Unwrap(wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, random(32))); err != nil {
				t.Errorf("the transport key is not for the state that was quoted: %v", err)
			}
			empty(t, d, dev)
		})
	}
}

func TestReadPCR(t *testing.T) {
	d := tpmtest.Open(t)
	d.Extend(23, []byte("x"))
	dev := New(d)
	for _, bank := range []string{"sha1", "sha256"} {
		got, err := dev.ReadPCR(bank, 23)
		if err != nil || !bytes.Equal(got, d.PCR(bank, 23)) {
			t.Errorf("%s: got %x, error %v, want %x", bank, got, err, d.PCR(bank, 23))
		}
	}
	for _, tt := range []struct {
		bank  string
		index int
	}{{"sha512", 0}, {"md5", 0}, {"sha256", 24}, {"sha256", -1}} {
		if got, err := dev.ReadPCR(tt.bank, tt.index); err == nil {
			t.Errorf("%s PCR %d: got %x, want an error", tt.bank, tt.index, got)
		}
	}
}
