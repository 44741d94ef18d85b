package provisioner

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/sealift/sealift/provisioner/api"
)

var (
	pxe64Options = map[uint8][]byte{
		60: []byte("PXEClient:Arch:00007:UNDI:003016"),
		93: {0, 7},
		97: append([]byte{0}, bytes.Repeat([]byte{0x11}, 16)...),
	}
	http64Options = map[uint8][]byte{
		60: []byte("HTTPClient:Arch:00016:UNDI:003001"),
		93: {0, 16},
	}
	installerOptions = map[uint8][]byte{60: []byte(api.VendorClass)}
)

func TestClientsOfAnotherImplementationGetLeases(t *testing.T) {
	l := newLab(t)
	p := l.mustServe()
	for _, c := range []struct {
		name      string
		broadcast bool
		options   map[uint8][]byte
		file      string // option 67
		class     string // option 60
	}{
		{"a plain client by unicast gets no boot file", false, nil, "", ""},
		{"a plain client by broadcast gets no boot file", true, nil, "", ""},
		{"UEFI PXE gets a file and no class", true, pxe64Options, "installer.efi\x00", ""},
		{"UEFI HTTP boot gets a URL and its class", true, http64Options, "http://10.98.0.1/boot/installer.efi", "HTTPClient"},
		{"the installer gets the base URL", false, installerOptions, "http://10.98.0.1/", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ack, err := l.dora("02:00:00:00:00:01", c.broadcast, c.options)
			if err != nil {
				t.Fatalf("%v\n%s", err, p.logged())
			}
			if got := string(ack.Options.Get(dhcpv4.OptionBootfileName)); got != c.file {
				t.Errorf("boot file is %q, want %q", got, c.file)
			}
			if got := ack.ClassIdentifier(); got != c.class {
				t.Errorf("class is %q, want %q", got, c.class)
			}
			if got := ack.YourIPAddr.String(); got != "10.98.0.20" {
				t.Errorf("address is %s, want 10.98.0.20: one box, one address", got)
			}
		})
	}
}

func TestBusyboxDHCPClientGetsTheBaseURL(t *testing.T) {
	needTool(t, "busybox")
	l := newLab(t)
	p := l.mustServe()
	l.write("script", []byte("#!/bin/sh\necho \"$1 ip=$ip mask=$mask serverid=$serverid bootfile=$bootfile\" >> "+l.dir+"/events\n"+
		"if [ $1 = bound ]; then ip addr add $ip/$mask dev $interface; fi\n"))
	if err := os.Chmod(filepath.Join(l.dir, "script"), 0o700); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	client := l.command(l.client, "busybox", "udhcpc", "-i", labClientI, "-f", "-V", api.VendorClass, "-O", "67", "-s", filepath.Join(l.dir, "script"))
	client.Stdout, client.Stderr = &out, &out
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	events := func(want string) string {
		for range 200 {
			if b, _ := os.ReadFile(filepath.Join(l.dir, "events")); strings.Contains(string(b), want) {
				return string(b)
			}
			time.Sleep(50 * time.Millisecond)
		}
		client.Process.Kill()
		client.Wait()
		t.Fatalf("udhcpc comes to no %q:\n%s\n%s", want, out.Bytes(), p.logged())
		return ""
	}
	got := events("bound")
	client.Process.Signal(syscall.SIGUSR2) // release
	if n := strings.Count(got, "deconfig"); n != 1 {
		t.Errorf("udhcpc lost its lease %d times", n)
	}
	events("\ndeconfig") // the first one is the first line
	client.Process.Signal(syscall.SIGTERM)
	client.Wait()
	want := "bound ip=10.98.0.20 mask=24 serverid=10.98.0.1 bootfile=http://10.98.0.1/"
	if !strings.Contains(got, want) {
		t.Errorf("udhcpc's events are:\n%swant a line %q", got, want)
	}
	// The exchange of another client comes after the release.
	if _, _, err := l.dora("02:00:00:00:00:02", false, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	leases, err := os.ReadFile(filepath.Join(l.dir, "leases"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(leases), `"state":"released"`) {
		t.Errorf("no release in the lease file:\n%s", leases)
	}
}

func TestPerfdhcpLosesNoExchangeThroughARelay(t *testing.T) {
	needTool(t, "perfdhcp")
	l := newLab(t)
	l.config.Address = "10.98.0.1/16"
	l.config.Last = "10.98.63.255"
	l.in(l.server, "ip", "addr", "replace", "10.98.0.1/16", "dev", labServerI)
	l.in(l.server, "ip", "addr", "del", labAddress, "dev", labServerI)
	l.in(l.client, "ip", "addr", "add", "10.98.200.1/16", "dev", labClientI)
	p := l.mustServe()
	// 500 exchanges of different clients at 100 a second; perfdhcp exits with
	// 3 if one was lost.
	out, err := l.command(l.client, "perfdhcp", "-4", "-l", labClientI, "-r", "100", "-R", "500", "-n", "500", "-d", "10", "-W", "2000000", "10.98.0.1").CombinedOutput()
	if err != nil {
		t.Fatalf("perfdhcp: %v\n%s\n%s", err, out, p.logged())
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	// What was confirmed is in the file: that is what an ACK promises.
	table := newLeaseTable(Range{addr("10.98.0.1"), addr("10.98.63.255")})
	j, err := openJournal(filepath.Join(l.dir, "leases"), "leases", table.load)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if n := len(table.lines()); n != 500 {
		t.Errorf("%d leases are stored, want 500\n%s", n, out)
	}
}

func TestAtftpFetchesTheInstallerWithWindows(t *testing.T) {
	needTool(t, "atftp")
	l := newLab(t)
	l.in(l.client, "ip", "addr", "add", "10.98.0.9/24", "dev", labClientI)
	p := l.mustServe()
	want, err := os.ReadFile(l.config.Installer)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
	}{
		{"no option", nil},
		{"blksize of edk2", []string{"--option", "blksize 1468"}},
		{"blksize and window of edk2", []string{"--option", "blksize 1468", "--option", "windowsize 4", "--option", "tsize 0"}},
		{"large window", []string{"--option", "blksize 1024", "--option", "windowsize 32"}},
		{"block larger than the MTU", []string{"--option", "blksize 16384", "--option", "windowsize 4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "got")
			args := append([]string{"atftp"}, c.args...)
			args = append(args, "-g", "-r", "/boot//installer.efi", "-l", to, "10.98.0.1", "69")
			if out, err := l.command(l.client, args...).CombinedOutput(); err != nil {
				t.Fatalf("atftp: %v\n%s\n%s", err, out, p.logged())
			}
			got, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got %d bytes that differ from the %d sent", len(got), len(want))
			}
		})
	}
	out, err := l.command(l.client, "atftp", "-g", "-r", "../hosts", "-l", filepath.Join(l.dir, "no"), "10.98.0.1", "69").CombinedOutput()
	if !strings.Contains(string(out), "no such file") {
		t.Errorf("atftp for a file that is not served: %v %s", err, out)
	}
}

func TestAForeignDHCPServerStopsTheStart(t *testing.T) {
	const want = "another dhcp server answers on this network: 10.98.0.9 on srv0"
	foreign := func(t *testing.T) *lab {
		l := newLab(t)
		l.config.Probe = true
		l.in(l.client, "ip", "addr", "add", "10.98.0.9/24", "dev", labClientI)
		return l
	}
	t.Run("dnsmasq", func(t *testing.T) {
		needTool(t, "dnsmasq")
		l := foreign(t)
		if l.user {
			t.Skip("dnsmasq sets its groups, which a user namespace does not allow")
		}
		cmd := l.command(l.client, "dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--user=root", "--group=root", "--pid-file=",
			"--dhcp-leasefile="+filepath.Join(l.dir, "foreign"), "--interface="+labClientI, "--bind-interfaces",
			"--dhcp-range=10.98.0.60,10.98.0.70", "--dhcp-authoritative", "--log-facility=-")
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, err := l.serve()
		cmd.Process.Kill()
		cmd.Wait()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the start beside dnsmasq: %v\n%s", err, log.Bytes())
		}
		if _, err := l.serve(); err != nil {
			t.Errorf("the start after dnsmasq has gone: %v", err)
		}
	})
	t.Run("another Sealift", func(t *testing.T) {
		l := foreign(t)
		other := *l
		other.server = l.client
		other.config.Dir, other.config.Interface, other.config.Address, other.config.Probe = t.TempDir(), labClientI, "10.98.0.9/24", false
		other.mustServe()
		if _, err := l.serve(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the start beside another server: %v", err)
		}
	})
}

func TestASecondServerOnTheHostIsRefused(t *testing.T) {
	l := newLab(t)
	l.mustServe()
	first := l.config.Dir
	l.config.Dir = t.TempDir()
	if _, err := l.serve(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a second server: %v", err)
	}
	// And the state of the first is its own.
	if _, err := openJournal(filepath.Join(first, "leases"), "leases", nil); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("a second opening of the lease file: %v", err)
	}
}

func TestCurlInstallsAHost(t *testing.T) {
	needTool(t, "curl")
	l := newLab(t)
	p := l.mustServe()
	mac := ""
	curl := func(args ...string) string {
		t.Helper()
		out, err := l.command(l.client, append([]string{"curl", "-s", "-S", "-m", "20", "-w", "\n%{http_code}"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %s: %v\n%s\n%s", args, err, out, p.logged())
		}
		return string(out)
	}
	fields := strings.Fields(l.in(l.client, "ip", "-o", "link", "show", labClientI))
	for i, f := range fields {
		if f == "link/ether" {
			mac = fields[i+1]
		}
	}
	_, ack, err := l.dora(mac, false, installerOptions)
	if err != nil {
		t.Fatal(err)
	}
	base := ack.BootFileNameOption()
	l.in(l.client, "ip", "addr", "add", ack.YourIPAddr.String()+"/24", "dev", labClientI)

	if got := curl(base + "v1/install/plan?mac=02:00:00:00:00:99"); !strings.HasSuffix(got, "403") {
		t.Errorf("a plan for another host: %s", got)
	}
	plan := curl(base + "v1/install/plan?mac=" + mac)
	if want := `{"manifest":"images/demo/manifest.json","bundle":"images/demo/manifest.json.sigstore.json","disk":"images/demo/disk.raw.zst"}` + "\n\n200"; plan != want {
		t.Errorf("plan is %q, want %q", plan, want)
	}

	disk, err := os.ReadFile(filepath.Join(l.config.Image, "disk.raw.zst"))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(l.dir, "part")
	curl("-o", to, "-r", "1000-5999", base+"images/demo/disk.raw.zst")
	if got, _ := os.ReadFile(to); !bytes.Equal(got, disk[1000:6000]) {
		t.Errorf("a range of 5000 bytes came as %d bytes", len(got))
	}
	curl("-o", to, "-C", "-", base+"images/demo/disk.raw.zst") // resumes from 5000, on purpose at the wrong place
	if got, _ := os.ReadFile(to); len(got) != len(disk) {
		t.Errorf("a resumed download has %d bytes, want %d", len(got), len(disk))
	}
	head := curl("-I", base+"/boot//installer.efi")
	for _, want := range []string{"HTTP/1.1 200 OK", "Content-Type: application/efi", "Content-Length: 3145730", "Etag: \"", "Accept-Ranges: bytes"} {
		if !strings.Contains(head, want) {
			t.Errorf("HEAD of the installer lacks %q:\n%s", want, head)
		}
	}
	for _, path := range []string{"", "images/", "images/demo/", "images/demo/private.key", "images/demo/../../hosts", "images/../leases",
		"images/demo/%2e%2e%2f%2e%2e%2fhosts", "boot/", "boot/private.key", "v1/install/../../hosts", "images/demo/manifest.json/"} {
		want := "404"
		if path == "images/demo/manifest.json/" {
			want = "200" // a slash too many is forgiven
		}
		if got := curl("--path-as-is", base+path); !strings.HasSuffix(got, want) {
			t.Errorf("GET %q: %s, want %s", path, got, want)
		}
	}

	post := func(path string, body any) string {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		l.write("body", b)
		return curl("--data-binary", "@"+filepath.Join(l.dir, "body"), base+path)
	}
	key := api.HostKey{MAC: mac}
	if got := post(api.PathProgress, api.Progress{Host: key, Phase: "write", Done: 1, Total: 2}); got != "\n204" {
		t.Errorf("progress: %s", got)
	}
	if got := post(api.PathRecord, api.Record{Host: key, Record: json.RawMessage(`"` + strings.Repeat("x", api.MaxBody) + `"`)}); !strings.HasSuffix(got, "413") {
		t.Errorf("a record that is too large: %s", got)
	}
	record := api.Record{Host: key, Record: json.RawMessage(`{"disk": "a<b", "n": 1}`)}
	for range 2 {
		if got := post(api.PathRecord, record); got != "\n204" {
			t.Errorf("record: %s", got)
		}
	}
	if got := post(api.PathRecord, api.Record{Host: key, Record: json.RawMessage(`{"disk":"other"}`)}); !strings.HasSuffix(got, "409") {
		t.Errorf("another record: %s", got)
	}
	if got := curl(base + "v1/install/plan?mac=" + mac); !strings.HasSuffix(got, "409") {
		t.Errorf("a plan for an installed host: %s", got)
	}
	records, err := os.ReadFile(filepath.Join(l.dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(records), "\n"); got != 1 {
		t.Errorf("the sink got %d records, want 1:\n%s", got, records)
	}

	// The firmware of an installed host gets an address, and goes on to its disk.
	if _, ack, err := l.dora(mac, true, pxe64Options); err != nil || ack.BootFileNameOption() != diskBootFile || ack.BootFileName != diskBootFile {
		t.Errorf("an installed host is told to boot the installer: %v %v", ack, err)
	}
	if got := p.ask("reinstall " + mac); got != "reinstall: <nil>" {
		t.Error(got)
	}
	if _, ack, err := l.dora(mac, true, pxe64Options); err != nil || ack.BootFileNameOption() != "installer.efi" {
		t.Errorf("a host to be reinstalled is not told to boot the installer: %v %v", ack, err)
	}
	if got := curl(base + "v1/install/plan?mac=" + mac); !strings.HasSuffix(got, "200") {
		t.Errorf("a plan for a reinstall: %s", got)
	}
	if got := post(api.PathRecord, api.Record{Host: key, Record: json.RawMessage(`{"disk":"other"}`)}); got != "\n204" {
		t.Errorf("the record of a reinstall: %s", got)
	}
	// All of that outlives the server.
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	hosts, err := OpenFileHosts(filepath.Join(l.dir, "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	defer hosts.Close()
	h, err := hosts.Host(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if h.State != Installed || !h.Delivered || h.Reinstall || string(h.Record) != `{"disk":"other"}` || h.Arch != "amd64" || h.Key.UUID != "11111111-1111-1111-1111-111111111111" {
		t.Errorf("the stored host is %+v", h)
	}
}
