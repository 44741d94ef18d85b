package attest_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

func TestMalformedLogsAreRefused(t *testing.T) {
	good := func() []byte { return papertpm.EncodeLog([]string{"sha1", "sha256"}, papertpm.GoodBoot().Measured) }
	short := func() []byte { return papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured) }
	noAction := func(data string, before ...papertpm.Measurement) []byte {
		return papertpm.EncodeLog([]string{"sha256"}, append(before, papertpm.Measurement{PCR: 0, Type: EventNoAction, Data: []byte(data)}))
	}
	const header = 32 // of the first event, before its data
	spec := header + len(SpecIDSignature)
	first := len(papertpm.EncodeLog([]string{"sha256"}, nil)) // offset of the first event
	put := func(b []byte, off int, v uint32) []byte {
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	digests := len(papertpm.EncodeLog([]string{"sha1", "sha256"}, nil)) + 12 // of the first event: SHA-1, SHA-256
	twice := slices.Concat(good()[:digests], good()[digests+22:digests+56], good()[digests+22:])
	cases := map[string]struct {
		log  []byte
		says string
	}{
		"nothing":                                {nil, "inside an event"},
		"an old SHA-1 log":                       {append(make([]byte, 4), 8, 0, 0, 0), "inside an event"},
		"a first event of another type":          {put(short(), 4, 8), "want an EV_NO_ACTION event"},
		"a header with a digest":                 {put(short(), 8, 1), "want an EV_NO_ACTION event"},
		"a header longer than the log":           {put(short(), 28, 1<<31), "inside an event"},
		"another signature":                      {put(short(), header, 0x41414141), "signature"},
		"another specification version":          {put(short(), spec+4, 0x02000001), "version"},
		"no bank":                                {put(short(), spec+8, 0), "declares 0 banks"},
		"a thousand banks":                       {put(short(), spec+8, 1000), "declares 1000 banks"},
		"an unknown bank":                        {put(short(), spec+12, 0x00200012), "unknown algorithm"},
		"a bank with a wrong size":               {put(short(), spec+12, 0x0014000b), "want 32"},
		"a bank declared twice":                  {put(good(), spec+12, 0x0020000b), "twice"},
		"no SHA-256 bank":                        {papertpm.EncodeLog([]string{"sha1"}, papertpm.GoodBoot().Measured), "want sha256"},
		"a PCR beyond 23":                        {put(short(), first, 24), "PCR is 24"},
		"an event with no digest":                {put(short(), first+8, 0), "got 0 digests"},
		"an event with a digest too many":        {put(short(), first+8, 2), "got 2 digests"},
		"an event with four billion digests":     {put(short(), first+8, 1<<32-1), "digests"},
		"a digest of an undeclared bank":         {put(short(), first+12, 0x0004), "algorithm 0x0004"},
		"two digests of one bank":                {twice, "algorithm 0x000b"},
		"data longer than the log":               {put(short(), first+12+34, 1<<32-1), "bytes"},
		"a trailing byte":                        {append(short(), 0), "inside an event"},
		"an event cut off":                       {short()[:first+20], "inside an event"},
		"startup locality 1":                     {noAction(LocalitySignature + "\x01"), "startup locality is 1"},
		"startup locality after a measurement":   {noAction(LocalitySignature+"\x03", papertpm.GoodBoot().Measured[0]), "before the first measurement"},
		"startup locality twice":                 {noAction(LocalitySignature+"\x03", papertpm.Measurement{Type: EventNoAction, Data: []byte(LocalitySignature + "\x00")}), "the only one"},
		"startup locality with a trailing byte":  {noAction(LocalitySignature + "\x03\x00"), "the only one"},
		"an unmeasured event of an unknown kind": {noAction("Hello"), "unknown signature"},
		"a second header":                        {noAction(SpecIDSignature), "unknown signature"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := ParseEventLog(c.log)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
	if _, err := ParseEventLog(papertpm.EncodeLog([]string{"sha256"}, make([]papertpm.Measurement, MaxEvents+1))); err == nil {
		t.Error("a log with too many events was read")
	}
	if _, err := ParseEventLog(noAction("SP800-155 Event3")); err != nil {
		t.Errorf("an unmeasured event of the PFP was refused: %v", err)
	}
}

func TestDigestsMayStandInAnyOrder(t *testing.T) {
	b := papertpm.EncodeLog([]string{"sha1", "sha256"}, papertpm.GoodBoot().Measured[:1])
	l, err := ParseEventLog(b)
	if err != nil {
		t.Fatal(err)
	}
	first := len(papertpm.EncodeLog([]string{"sha1", "sha256"}, nil)) + 12
	swapped := append(append(append(append([]byte{}, b[:first]...), b[first+22:first+22+34]...), b[first:first+22]...), b[first+56:]...)
	m, err := ParseEventLog(swapped)
	if err != nil {
		t.Fatal(err)
	}
	for _, bank := range l.Banks {
		x, _ := l.Replay(bank, 0)
		if y, err := m.Replay(bank, 0); err != nil || string(x) != string(y) {
			t.Errorf("bank %s: got %x, %v, want %x", bank, y, err, x)
		}
	}
	if _, err := l.Replay("sha512", 0); err == nil {
		t.Error("a bank that the log does not have was replayed")
	}
}

func FuzzParseEventLog(f *testing.F) {
	f.Add(papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured))
	f.Add(papertpm.EncodeLog([]string{"sha1", "sha256", "sha384", "sha512"}, papertpm.GoodBoot().Measured[:3]))
	for _, name := range realLogs() {
		f.Add(readFile(f, name+".bin"))
	}
	s := newScene(f)
	s.collect()
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseEventLog(b)
		if err != nil {
			return
		}
		// What parses is judged without fear, whatever it says.
		ev := *s.ev
		ev.EventLog = b
		if _, err := VerifyLog(&ev, l, s.known, s.policy); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseVariable(f *testing.F) {
	f.Add(papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("data")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseVariable(b); err == nil {
			DescribeSignatures(v.Data)
		}
		DescribeSignatures(b)
		GPTDiskGUID(b)
		VersionText(b)
	})
}

func TestSignatureListsAreDescribedForPeople(t *testing.T) {
	ca := newCA(t)
	list := func(typ string, entries ...[]byte) []byte {
		size := 16 + len(entries[0])
		b := append([]byte(typ), make([]byte, 12)...)
		binary.LittleEndian.PutUint32(b[16:], uint32(28+size*len(entries)))
		binary.LittleEndian.PutUint32(b[24:], uint32(size))
		for _, e := range entries {
			b = append(append(b, make([]byte, 16)...), e...)
		}
		return b
	}
	hashes := list(strings.Repeat("h", 16), make([]byte, 32), make([]byte, 32))
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "nothing"},
		{list(certX509, ca.Root.Raw), `"CN=Paper TPM Root"`},
		{hashes, "2 hashes"},
		{append(list(certX509, ca.Root.Raw), hashes...), `"CN=Paper TPM Root" and 2 hashes`},
		{list(certX509, []byte("x")), "an unreadable certificate"},
		{hashes[:60], "damaged signature lists"},
		{[]byte("x"), "damaged signature lists"},
	} {
		if got := DescribeSignatures(c.data); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
