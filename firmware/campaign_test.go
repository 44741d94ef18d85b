package firmware

import (
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

func catalogue() *Catalogue {
	return &Catalogue{Models: []Model{{Vendor: "QEMU", Product: "box", Builds: []Build{
		{Version: "1", Digests: []manifest.SHA256{{1}}, Unpinned: 1, Status: Allowed},
		{Version: "2", Digests: []manifest.SHA256{{2}}, Unpinned: 1, Status: Candidate},
		{Version: "0", Digests: []manifest.SHA256{{9}}, Status: Denied, Reason: "CVE"},
	}}}}
}

func statusOf(t *testing.T, p attest.FirmwarePolicy, version string) attest.FirmwareStatus {
	t.Helper()
	for _, r := range p.References {
		if r.Version == version {
			return r.Status
		}
	}
	t.Fatalf("no reference for %s", version)
	return ""
}

func TestCampaignIsProvenByMeasurementOnly(t *testing.T) {
	now := time.Unix(1000, 0).UTC()
	a, b, outside := attest.MachineID{1}, attest.MachineID{2}, attest.MachineID{3}
	cat := catalogue()
	opened, err := NewCampaign(Campaign{Name: "bios-2", Vendor: "QEMU", Product: "box", From: "1", To: "2", Wave: []attest.MachineID{a, b}}, cat, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	c := *opened
	fw := func(v attest.FirmwareVerdict, version string) attest.Firmware {
		return attest.Firmware{Verdict: v, Version: version, Claimed: "2", Vendor: "QEMU", Product: "box"}
	}
	for name, boot := range map[string]struct {
		machine attest.MachineID
		fw      attest.Firmware
	}{
		"a claim":         {a, fw(attest.FirmwareClaimedOnly, "2")},
		"a cross-check":   {a, fw(attest.FirmwareCrossChecked, "2")},
		"the old build":   {a, fw(attest.FirmwareMeasured, "1")},
		"another machine": {outside, fw(attest.FirmwareMeasured, "2")},
		"another model":   {a, attest.Firmware{Verdict: attest.FirmwareMeasured, Version: "2", Vendor: "QEMU", Product: "other"}},
	} {
		if _, changed := c.Observe(boot.machine, boot.fw, now); changed {
			t.Errorf("%s proved something", name)
		}
	}
	for version, want := range map[string]attest.FirmwareStatus{"1": attest.FirmwareAllowed, "2": attest.FirmwareAllowed, "0": attest.FirmwareDenied} {
		if got := statusOf(t, References(cat, []Campaign{c}, a), version); got != want {
			t.Errorf("open, in the wave, build %s: got %s, want %s", version, got, want)
		}
	}
	if got := statusOf(t, References(cat, []Campaign{c}, outside), "2"); got != attest.FirmwareDenied {
		t.Errorf("open, outside the wave, build 2: got %s, want denied", got)
	}

	c, changed := c.Observe(a, fw(attest.FirmwareMeasured, "2"), now)
	if !changed || c.State != Open {
		t.Fatalf("first proof: changed %v, state %s, want true and open", changed, c.State)
	}
	if _, again := c.Observe(a, fw(attest.FirmwareMeasured, "2"), now); again {
		t.Error("one machine proved twice")
	}
	c, _ = c.Observe(b, fw(attest.FirmwareMeasured, "2"), now.Add(time.Second))
	if c.State != Proven || !c.ProvenAt.Equal(now.Add(time.Second)) {
		t.Fatalf("all machines booted it: state %s at %s", c.State, c.ProvenAt)
	}
	p := References(cat, []Campaign{c}, a)
	if got := statusOf(t, p, "1"); got != attest.FirmwareDenied {
		t.Errorf("proven, build 1: got %s, want denied", got)
	}
	if got := statusOf(t, p, "2"); got != attest.FirmwareAllowed {
		t.Errorf("proven, build 2: got %s, want allowed", got)
	}
	if got := statusOf(t, References(cat, []Campaign{c}, outside), "1"); got != attest.FirmwareAllowed {
		t.Errorf("proven, outside the wave, build 1: got %s, want allowed", got)
	}
}

func TestNewCampaignRefuses(t *testing.T) {
	m := []attest.MachineID{{1}}
	good := Campaign{Name: "a", Vendor: "QEMU", Product: "box", From: "1", To: "2", Wave: m}
	for name, change := range map[string]func(*Campaign){
		"a bad name":         func(c *Campaign) { c.Name = "../x" },
		"no move":            func(c *Campaign) { c.To = "1" },
		"an unknown build":   func(c *Campaign) { c.To = "7" },
		"a denied build":     func(c *Campaign) { c.To = "0" },
		"an unknown model":   func(c *Campaign) { c.Product = "x" },
		"no machines":        func(c *Campaign) { c.Wave = nil },
		"a repeated machine": func(c *Campaign) { c.Wave = append(m, m...) },
		"a name in use":      func(c *Campaign) { c.Name = "old" },
	} {
		c := good
		change(&c)
		if _, err := NewCampaign(c, catalogue(), []Campaign{{Name: "old", State: Proven}}, time.Now()); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	open := good
	open.Name, open.State = "other", Open
	_, err := NewCampaign(good, catalogue(), []Campaign{open}, time.Now())
	if err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("a machine in two open campaigns: got error %v, want one that names the other campaign", err)
	}
}

func TestParseCatalogueIsStrict(t *testing.T) {
	enc, err := catalogue().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCatalogue("c.yaml", enc)
	if err != nil {
		t.Fatal(err)
	}
	if got.Models[0].Builds[1].Digests[0] != (manifest.SHA256{2}) {
		t.Errorf("round trip lost a digest: %s", enc)
	}
	for name, in := range map[string]string{
		"an unknown field": "models:\n- vendor: a\n  product: b\n  buildz: []\n",
		"a short digest":   "models:\n- vendor: a\n  product: b\n  builds:\n  - {version: '1', digests: [abcd], status: allowed}\n",
		"no digest":        "models:\n- vendor: a\n  product: b\n  builds:\n  - {version: '1', status: allowed}\n",
		"no status":        "models:\n- vendor: a\n  product: b\n  builds:\n  - {version: '1', digests: ['" + strings.Repeat("a", 64) + "']}\n",
	} {
		if _, err := ParseCatalogue("c.yaml", []byte(in)); err == nil || !strings.Contains(err.Error(), "c.yaml") {
			t.Errorf("%s: got error %v, want one that names the file", name, err)
		}
	}
}

func FuzzParseCatalogue(f *testing.F) {
	enc, _ := catalogue().Encode()
	f.Add(enc)
	f.Fuzz(func(t *testing.T, b []byte) { ParseCatalogue("x", b) })
}

func TestTheLaterCampaignDecides(t *testing.T) {
	machine := attest.MachineID{1}
	cat := &Catalogue{Models: []Model{{Vendor: "QEMU", Product: "box", Builds: []Build{
		{Version: "1", Digests: []manifest.SHA256{{1}}, Status: Allowed},
		{Version: "2", Digests: []manifest.SHA256{{2}}, Status: Candidate},
		{Version: "3", Digests: []manifest.SHA256{{3}}, Status: Candidate},
	}}}}
	campaign := func(name, from, to string, opened int64, state CampaignState) Campaign {
		return Campaign{Name: name, Vendor: "QEMU", Product: "box", From: from, To: to,
			Wave: []attest.MachineID{machine}, State: state, Opened: time.Unix(opened, 0)}
	}
	// The store gives campaigns by name: "autumn" comes before "spring".
	spring := campaign("spring", "1", "2", 100, Proven)
	for name, tt := range map[string]struct {
		later Campaign
		want  map[string]attest.FirmwareStatus
	}{
		"forward, proven: what the first led to is left behind": {
			campaign("autumn", "2", "3", 200, Proven),
			map[string]attest.FirmwareStatus{"1": attest.FirmwareDenied, "2": attest.FirmwareDenied, "3": attest.FirmwareAllowed},
		},
		"forward, open": {
			campaign("autumn", "2", "3", 200, Open),
			map[string]attest.FirmwareStatus{"1": attest.FirmwareDenied, "2": attest.FirmwareAllowed, "3": attest.FirmwareAllowed},
		},
		"back, open: what was left behind is led to again": {
			campaign("autumn", "2", "1", 200, Open),
			map[string]attest.FirmwareStatus{"1": attest.FirmwareAllowed, "2": attest.FirmwareAllowed, "3": attest.FirmwareDenied},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, list := range [][]Campaign{{tt.later, spring}, {spring, tt.later}} {
				p := References(cat, list, machine)
				for version, want := range tt.want {
					if got := statusOf(t, p, version); got != want {
						t.Errorf("campaigns %s, %s: build %s: got %s, want %s", list[0].Name, list[1].Name, version, got, want)
					}
				}
			}
		})
	}
}
