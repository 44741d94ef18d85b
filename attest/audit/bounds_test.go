package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// The hashes were made with Python's hashlib from the comment of Entry.digest:
// each field with its length in eight bytes, big endian. Logs that services
// wrote are verified by them, so that they never change.
func TestTheHashOfAnEntryIsOverItsFieldsWithTheirLengths(t *testing.T) {
	first, err := Next(Head{}, Event{Time: begin, Kind: KindConfirm, Machine: attest.MachineIDOf([]byte("box")), Data: Confirm{ReleaseID: "r1", Outcome: "unlocked"}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Next(first.Head(), Event{Time: begin.In(time.FixedZone("CET", 3600)).Add(time.Second), Kind: KindStart, Data: json.RawMessage(`{"a":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		e    Entry
		want string
	}{
		{first, "b9817930d91ef5629d293ec46775410fcf763a4bd69c0ba84f28ba29bdff44cf"},
		{second, "797614612da21132dc2edcef45d183025abe0008fa01e15e5d086c2862ddde1b"},
	} {
		if got := tt.e.Hash.String(); got != tt.want {
			line, _ := AppendLine(nil, tt.e)
			t.Errorf("got %s, want %s, of %s", got, tt.want, line)
		}
	}
}

// entryOf makes the first entry of a log with data of so many bytes.
func entryOf(size int) (Entry, error) {
	data := json.RawMessage(`{"x":"` + strings.Repeat("x", size-8) + `"}`)
	return Next(Head{}, Event{Time: begin, Kind: KindConfirm, Data: data})
}

func TestAnEntryOfTheMostDataIsReadAgain(t *testing.T) {
	e, err := entryOf(MaxData)
	if err != nil {
		t.Fatal(err)
	}
	if _, n, err := Verify(bytes.NewReader(export(t, []Entry{e}))); err != nil || n != 1 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := entryOf(MaxData + 1); err == nil {
		t.Error("an entry of more data was made")
	}
}

func TestALogThatCannotBeReadToItsEndDoesNotVerify(t *testing.T) {
	log := export(t, chain(t, 3))
	cause := errors.New("the disk is gone")
	if _, n, err := Verify(io.MultiReader(bytes.NewReader(log), iotest.ErrReader(cause))); !errors.Is(err, cause) || n != 3 {
		t.Errorf("a read that fails: %d entries, %v", n, err)
	}
	var broken *BrokenError
	if _, n, err := Verify(io.MultiReader(bytes.NewReader(log), strings.NewReader(strings.Repeat("x", maxLine+1)))); !errors.As(err, &broken) || broken.Line != 4 || n != 3 {
		t.Errorf("an endless line: %d entries, %v", n, err)
	}
	if _, _, err := Verify(strings.NewReader("noise\n")); !errors.As(err, &broken) || !strings.Contains(broken.Reason, "not an audit entry") {
		t.Errorf("noise: %v", err)
	}
}

func TestOnlyAP256KeySignsAndOpens(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := Sign(ed, HeadType, HeadStatement{}); err == nil {
		t.Errorf("an Ed25519 key signs: %+v", e)
	}
	key := newKey(t, elliptic.P256())
	if e, err := Sign(key, HeadType, func() {}); err == nil {
		t.Errorf("what is no JSON is signed: %+v", e)
	}
	// A statement of a P-384 key that is right in every other way.
	other := newKey(t, elliptic.P384())
	e := signed(t, key, HeadStatement{Head: Head{Seq: 7}})
	digest := sha256.Sum256(preAuth(e.PayloadType, e.Payload))
	if e.Signatures[0].Sig, err = ecdsa.SignASN1(rand.Reader, other, digest[:]); err != nil {
		t.Fatal(err)
	}
	if err := e.Open(&other.PublicKey, HeadType, new(HeadStatement)); err == nil {
		t.Error("a P-384 key opens")
	}
}

func TestSignedByIsOfOneSignature(t *testing.T) {
	for n := range 3 {
		e := &Envelope{Signatures: make([]Signature, n)}
		for i := range e.Signatures {
			e.Signatures[i].KeyID = "a key"
		}
		if got := e.SignedBy(); (got != "") != (n == 1) {
			t.Errorf("of %d signatures: %q", n, got)
		}
	}
}

func TestAStatementOfAnotherTypeIsNoHead(t *testing.T) {
	e, err := Sign(newKey(t, elliptic.P256()), SeenType, HeadStatement{Head: Head{Seq: 7}})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.UnverifiedHead(); err == nil || s != (HeadStatement{}) {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestAnEnvelopeIsBounded(t *testing.T) {
	for _, more := range []int{0, 1} {
		line, err := json.Marshal(&Envelope{Signatures: []Signature{}})
		if err != nil {
			t.Fatal(err)
		}
		line = bytes.Replace(line, []byte(`"payloadType":""`), fmt.Appendf(nil, `"payloadType":%q`, strings.Repeat("x", maxEnvelope-len(line)+more)), 1)
		if _, err := ParseEnvelope(line); (err != nil) != (more > 0) {
			t.Errorf("%d bytes: %v", len(line), err)
		}
	}
}

func TestANumberOfAStatementMayBeSoFarAhead(t *testing.T) {
	for _, more := range []int64{0, 1} {
		data, err := json.Marshal(Policy{Statement: manifest.SHA256{1}, Counter: 3 + maxSkip + more})
		if err != nil {
			t.Fatal(err)
		}
		m := PolicyMark{Counter: 3}
		if err := m.Note(Entry{Seq: 1, Kind: KindPolicy, Data: data}); (err != nil) != (more > 0) {
			t.Errorf("%d ahead: %v", maxSkip+more, err)
		}
	}
}
