package profiles

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"go.yaml.in/yaml/v3"
)

// full is a profile that sets every field.
const full = `apiVersion: sealift.dev/v1
kind: Profile
name: shop
version: "007"
arch: arm64
base: oci
oci: {image: 'registry.example:5000/os/base:v1@sha256:0123456789012345678901234567890123456789012345678901234567890123'}
debian: {suite: bookworm, mirror: 'https://mirror.example/x'}
kernel: {package: linux-image-arm64, initrd: [nvme], root: [zram], cmdline: [console=ttyAMA0, quiet]}
packages: [nano, vim]
files:
- path: /etc/motd
  mode: "0640"
  content: "  yes\n\n: '\"#\ttab\u00a0\n"
- path: /usr/bin/x
  source: files/x
  replace: true
users:
- {name: till, uid: 1000, shell: /bin/sh}
kubernetes:
  distro: kubernetes
  version: v1.34.4
  source: modules
  mirror: https://mirror.example
  podCIDR: 10.1.0.0/16
  clusterDNS: 10.96.0.53
  clusterDomain: shop.local
preload:
  images:
  - {name: 'docker.io/a/b:1', from: 'registry.example/a/b:1'}
  - {name: 'docker.io/a/c:1', archive: c.tar}
  exclude: ['*x*']
  manifests:
  - {name: p, content: '{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {}}'}
  - {name: q, source: q.yaml}
disk: {esp: 256, slot: 1024, verity: 16, uki: 64}
attest: {url: 'https://attest.example:8443', ca: ca.pem}
install: {minDisk: 8192, wipe: true}
hardware:
- {manufacturer: 'Dell*', product: a, version: b, boardManufacturer: c, boardProduct: d, biosVendor: e}
policy:
  policy: 1
  name: fleet
  version: 3
  notBefore: "2026-01-01"
  notAfter: "2027-12-31"
  images:
  - name: shop
    minimum: "1.2"
    denied: [{version: "1.3", reason: broken}]
    manifests: ["0123456789012345678901234567890123456789012345678901234567890123"]
    debug: true
  secureBoot: {dbx: {superset: {file: DBXUpdate.bin, sha256: "0123456789012345678901234567890123456789012345678901234567890123"}}}
  tpm:
    allowed: [hardware, firmware]
    firmware: [{vendor: IFX, minimum: 7.85.4555.0, reason: CVE-2017-15361}]
    proveBanks: true
    bankExemptions:
    - {vendor: STM, model: ST33HTPH, below: "1.258", reason: has no TPM2_GetSessionAuditDigest}
    - {machine: "0123456789012345678901234567890123456789012345678901234567890123", reason: its certificate names no maker}
    withoutSHA256:
    - {vendor: IFX, model: SLB9672, below: "16", reason: their firmware measures into SHA-384}
    - {machine: "0123456789012345678901234567890123456789012345678901234567890123", reason: so does its}
  firmware:
    release: [measured, cross-checked]
    models:
    - vendor: LENOVO
      product: 20KHCTO1WW
      pattern: '\((\d+\.\d+) ?\)'
      minimum: [{version: "1.46", from: "2027-01-01", reason: CVE-1}]
      denied: [{version: "1.47", reason: bricks}]
      notBefore: "2020-01-01"
      components: [{pcr: 2, sha256: "0123456789012345678901234567890123456789012345678901234567890123", sha384: "012345678901234567890123456789012345678901234567890123456789012301234567890123456789012345678901", name: NIC}]
      configuration: any
debug: true
`

func TestEncodedProfileIsTheSame(t *testing.T) {
	for _, text := range []string{valid, full} {
		p, err := Parse("p.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("shown.yaml", out)
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		twice, err := again.Encode()
		if err != nil || !bytes.Equal(out, twice) {
			t.Errorf("shown twice (%v):\n%s\n%s", err, out, twice)
		}
		raw, err := p.EncodeJSON()
		if err != nil {
			t.Fatal(err)
		}
		var fromJSON, fromYAML any
		if err := json.Unmarshal(raw, &fromJSON); err != nil {
			t.Fatalf("%v in\n%s", err, raw)
		}
		if err := yaml.Unmarshal(out, &fromYAML); err != nil {
			t.Fatal(err)
		}
		j, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		var viaJSON any
		if err := json.Unmarshal(j, &viaJSON); err != nil || !reflect.DeepEqual(fromJSON, viaJSON) {
			t.Errorf("JSON and YAML say different things (%v):\n%s\n%s", err, raw, out)
		}
	}
}

// TestFullProfileSetsEveryField holds the test's profile, which other tests rely
// on, to what it says of itself.
func TestFullProfileSetsEveryField(t *testing.T) {
	p, err := Parse("p.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice:
			set[path] = set[path] || v.Len() > 0
			for i := range v.Len() {
				walk(v.Index(i), path+"[]")
			}
		default:
			set[path] = set[path] || !v.IsZero()
		}
	}
	walk(reflect.ValueOf(*p), "")
	for path, ok := range set {
		// Of sources that exclude each other one is enough.
		if !ok && path != ".OCI.Layout" && path != ".OCI.Archive" && path != ".Preload.Images[].Layout" && path != ".Preload.Images[].Go" &&
			path != ".Policy.SecureBoot.DBX.Any" && path != ".Policy.SecureBoot.DBX.Digests" {
			t.Errorf("%s is not set", path)
		}
	}
}

func FuzzEncodedTextIsTheSame(f *testing.F) {
	for _, s := range []string{"", "x", "  x\n", "\n x", "a\n\n", "yes", "1", "- a", "# a", "a: b", "\t", "\u2028", "\u0085x", "'\"", "a\r\nb", "---\n", "x \n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !(&document{}).checkText([]byte(s)) {
			return
		}
		p := Defaults()
		p.Files = []File{{Path: s, Content: s}}
		out, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again := &Profile{}
		if err := decodeStrict("shown.yaml", out, again).err(); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if again.Files[0] != p.Files[0] {
			t.Errorf("%+v became %+v in\n%s", p.Files[0], again.Files[0], out)
		}
	})
}
