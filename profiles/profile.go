// Package profiles holds what a fleet declares: the Profile, its strict
// parser, its lock file, and the distros as data. It also holds AgentConfig,
// the part of a profile that is baked into an image for the agent.
package profiles

// APIVersion and Kind are the first two fields of every profile.
const (
	APIVersion = "sealift.dev/v1"
	Kind       = "Profile"
)

// Profile declares one image. Relative paths are relative to the profile's file.
type Profile struct {
	APIVersion string `yaml:"apiVersion"` // of this format
	Kind       string `yaml:"kind"`       // of this file
	Name       string `yaml:"name"`       // RFC 1123 label, at most 40 characters
	Version    string `yaml:"version"`    // of the image: letters, digits, dot, dash
	Arch       string `yaml:"arch"`       // amd64, arm64
	Base       string `yaml:"base"`       // minimal; oci lays the same over the tree of an OCI image
	// OCI is the image that base oci starts from, and must be set with it.
	OCI OCI `yaml:"oci,omitempty"`

	Debian     Debian     `yaml:"debian"`
	Kernel     Kernel     `yaml:"kernel"`
	Packages   []string   `yaml:"packages"` // Debian packages beside those of the base and the distro
	Files      []File     `yaml:"files"`    // extra files of the root file system
	Users      []User     `yaml:"users"`    // beside root and nobody
	Kubernetes Kubernetes `yaml:"kubernetes"`
	Preload    Preload    `yaml:"preload"`
	Disk       Disk       `yaml:"disk"`
	Attest     Attest     `yaml:"attest"`
	Install    Install    `yaml:"install"`
	// Hardware is what the installer writes to: a machine that fits at least
	// one entry. Empty: any machine. It keeps an image from the wrong box by
	// mistake; what a machine says of itself is a claim, not proof.
	Hardware []Hardware `yaml:"hardware"`
	// Policy says which machines may have secrets. The build signs it and puts it
	// beside the image; sealift serve enables it.
	Policy Policy `yaml:"policy,omitempty"`
	Debug  bool   `yaml:"debug"` // verbose console; marks the image, its manifest and its os-release as not for production
}

// OCI is a container image whose tree becomes the base of the root file
// system. Exactly one field is set. The kernel, the agent and the distro come on
// top; what the image has below /boot, /dev, /proc, /run, /sys, /tmp, /var and
// of kernel modules is left out.
type OCI struct {
	Layout  string `yaml:"layout,omitempty"`  // directory of an OCI image layout
	Archive string `yaml:"archive,omitempty"` // OCI image layout in a tar archive
	Image   string `yaml:"image,omitempty"`   // reference with the digest of the image or its index: registry.example/os@sha256:...
}

// File is a regular file that belongs to root. Exactly one of Content and
// Source is set.
type File struct {
	// Path is absolute. Places that other file systems are mounted on, and what
	// the image builder itself writes, are refused.
	Path    string `yaml:"path"`
	Mode    string `yaml:"mode"`              // octal permission bits, 0644 if empty
	Content string `yaml:"content,omitempty"` // the text itself
	Source  string `yaml:"source,omitempty"`  // file beside the profile or below; never outside
	Replace bool   `yaml:"replace,omitempty"` // allow that a package or the distro has a file of that path
}

// User is an account and a group of the same name and number. Its password is
// locked and nothing lets it log in: it is for programs that look names up.
type User struct {
	Name  string `yaml:"name"`            // of the user and of its group
	UID   int    `yaml:"uid"`             // 1000 to 59999, as Debian Policy 9.2.2 has them
	Shell string `yaml:"shell,omitempty"` // program that the image has; none if empty. Only with debug.
}

// Hardware is one kind of machine by its SMBIOS (DSP0134) types 0, 1 and 2.
// Every field that is set must fit. In a pattern * stands for any text and ?
// for one character; case is of no account.
type Hardware struct {
	Manufacturer      string `yaml:"manufacturer,omitempty" json:"manufacturer,omitempty"`           // of the system
	Product           string `yaml:"product,omitempty" json:"product,omitempty"`                     // name of the system
	Version           string `yaml:"version,omitempty" json:"version,omitempty"`                     // of the system
	BoardManufacturer string `yaml:"boardManufacturer,omitempty" json:"boardManufacturer,omitempty"` // of the first baseboard
	BoardProduct      string `yaml:"boardProduct,omitempty" json:"boardProduct,omitempty"`           // name of the first baseboard
	BIOSVendor        string `yaml:"biosVendor,omitempty" json:"biosVendor,omitempty"`               // of the firmware
}

// Debian says where packages come from.
type Debian struct {
	Suite  string `yaml:"suite"`  // release of Debian
	Mirror string `yaml:"mirror"` // of Debian: http://host; /debian and /debian-security are added
}

// Kernel chooses the kernel package and the modules that go into the image.
type Kernel struct {
	Package string   `yaml:"package"` // linux-image-cloud- and the architecture if empty
	Initrd  []string `yaml:"initrd"`  // modules the initramfs loads; dependencies are resolved
	Root    []string `yaml:"root"`    // modules loaded after the root file system is mounted
	Cmdline []string `yaml:"cmdline"` // extra kernel parameters
}

// Kubernetes chooses the distro and configures the node.
type Kubernetes struct {
	Distro  string `yaml:"distro"`  // kubernetes, k3s, k0s, rke2
	Version string `yaml:"version"` // v1.34.4
	// Source is where the distro's programs come from: modules or release.
	// Optional; modules if the version can be built from them, else release.
	Source string `yaml:"source"`
	// Mirror takes the place of scheme and host of the vendor's server:
	// https://mirror.example has the paths of github.com or dl.k8s.io. Optional.
	Mirror        string `yaml:"mirror,omitempty"`
	PodCIDR       string `yaml:"podCIDR"`       // of this node's bridge network
	ClusterDNS    string `yaml:"clusterDNS"`    // address of the cluster's name server
	ClusterDomain string `yaml:"clusterDomain"` // suffix of the names of services
}

// Preload lists what must be there without a registry.
type Preload struct {
	Images []PreloadImage `yaml:"images"` // imported by the node at its first start
	// Exclude leaves out images of the distro's own list: patterns of whole
	// references in which * stands for anything, e.g. *traefik*.
	Exclude []string `yaml:"exclude"`
	// Manifests are static pods, which the kubelet starts by itself, with the
	// distro kubernetes even without a cluster. Not every distro takes them.
	Manifests []Manifest `yaml:"manifests" json:"-"` // chooses no input but its Source
}

// Manifest is one static pod as Kubernetes YAML or JSON. Exactly one of Content
// and Source is set.
type Manifest struct {
	Name    string `yaml:"name"`              // of the file on the node, without .yaml
	Content string `yaml:"content,omitempty"` // the text itself
	Source  string `yaml:"source,omitempty"`  // file beside the profile or below; never outside
}

// PreloadImage is one container image. At most one source is set; with none
// the image is pulled from the registry that its name says. What a tag or a
// layout stands for is decided when the profile is locked.
type PreloadImage struct {
	Name    string `yaml:"name"`              // full reference, e.g. docker.io/sealift/hello:v1
	From    string `yaml:"from,omitempty"`    // reference to pull instead of Name, with a tag or a digest
	Archive string `yaml:"archive,omitempty"` // OCI layout in a tar archive
	Layout  string `yaml:"layout,omitempty"`  // directory of an OCI layout
	Go      string `yaml:"go,omitempty"`      // directory of a Go main package, built static as the image's only file
}

// Pulled reports whether the image comes from a registry.
func (i PreloadImage) Pulled() bool { return i.Archive == "" && i.Layout == "" && i.Go == "" }

// Disk declares the layout and its budgets. Sizes are in MiB.
type Disk struct {
	ESP    int `yaml:"esp"`    // at least 64
	Slot   int `yaml:"slot"`   // root file system, each of two
	Verity int `yaml:"verity"` // hash tree, each of two
	UKI    int `yaml:"uki"`    // budget of one UKI: a larger one fails the build
}

// Attest names the attestation service.
type Attest struct {
	URL string `yaml:"url"` // https://host:port of the node API
	// CA is a PEM file, beside the profile or below, of certificates that the
	// service's own may chain to. The CA of the fleet's key directory is always
	// trusted too. Optional.
	CA string `yaml:"ca,omitempty"`
}

// Install says what the installer may do.
type Install struct {
	MinDisk int  `yaml:"minDisk"` // MiB; smaller disks are never chosen
	Wipe    bool `yaml:"wipe"`    // write over a disk that holds unknown data
}

// AgentConfigPath is where the agent finds its AgentConfig in the initramfs.
const AgentConfigPath = "/etc/sealift/agent.json"

// Modes of the agent in an initramfs.
const (
	ModeBoot    = "boot"
	ModeInstall = "install"
)

// AgentConfig is what an image's agent needs to know. It is measured with the
// initramfs, so it is as trusted as the image, and holds no secret.
type AgentConfig struct {
	Mode    string   `json:"mode"`
	Image   string   `json:"image"` // "name version"
	Debug   bool     `json:"debug"`
	Modules []string `json:"modules"` // paths in the initramfs, in load order

	// ModeBoot
	AttestURL  string `json:"attestURL,omitempty"`
	AttestCA   string `json:"attestCA,omitempty"`   // PEM
	ReleaseKey string `json:"releaseKey,omitempty"` // PEM public key that signs releases
	PCRKey     string `json:"pcrKey,omitempty"`     // PEM public key of .pcrsig

	// ModeInstall
	ImageKey string `json:"imageKey,omitempty"` // PEM public key that signs manifests
	MinDisk  int64  `json:"minDisk,omitempty"`  // bytes
	Wipe     bool   `json:"wipe,omitempty"`
	// Hardware are the machines that may be written to; any if empty.
	Hardware []Hardware `json:"hardware,omitempty"`
}

// Paths in images that the builder writes and the agent reads.
const (
	// SecureBootDir is in the installer's initramfs: PK.auth, KEK.auth, db.auth.
	SecureBootDir = "/etc/sealift/secureboot"
	// RootModulesPath is in the root file system: module paths, one a line, in load order.
	RootModulesPath = "/usr/lib/sealift/modules"
	// PeopleModulesPath is the same for the modules that are loaded when people
	// are asked to type something.
	PeopleModulesPath = "/usr/lib/sealift/people-modules"
	// RootAgentPath is the agent in the root file system; /sbin/init links to it.
	RootAgentPath = "/usr/lib/sealift/agent"
	// ImagesDir is in the root file system: OCI layout archives to import.
	ImagesDir = "/usr/share/sealift/images"
	// PCRSignaturePath is where systemd-stub leaves .pcrsig for the initramfs.
	PCRSignaturePath = "/.extra/tpm2-pcr-signature.json"
)

// Kernel parameters that the builder writes into a UKI for the agent.
const (
	ParamRootHash = "sealift.roothash" // dm-verity root hash, hex
	// ParamOnFatal says what the agent does after a fatal error: reboot,
	// poweroff or halt. It is heeded only in images marked debug.
	ParamOnFatal = "sealift.onfatal"
)

// Policy is what evidence is held against beside the signed manifests of images,
// the catalogue of firmware and the trusted roots of TPMs. It stands in a file of
// its own or in the profile of an image.
type Policy struct {
	Format    int    `yaml:"policy,omitempty"`    // version of this format: 1
	Name      string `yaml:"name,omitempty"`      // in a profile, the profile's name if it is left out
	Version   int    `yaml:"version,omitempty"`   // from 1; the service does not go back to a lower one of the same name
	NotBefore string `yaml:"notBefore,omitempty"` // day from which it is in force, "2026-01-31"; before, nothing is released
	NotAfter  string `yaml:"notAfter,omitempty"`  // last day on which it is in force; after it, nothing is released

	// Images are the images that may run: those whose name is listed, of the
	// signed manifests that the service has. Empty: none.
	Images     []PolicyImage    `yaml:"images,omitempty"`
	SecureBoot PolicySecureBoot `yaml:"secureBoot,omitempty"` // PK, KEK and db are always exactly those that the image was signed for
	TPM        PolicyTPM        `yaml:"tpm,omitempty"`        // which TPMs are believed
	Firmware   PolicyFirmware   `yaml:"firmware,omitempty"`   // which firmware of the catalogue may run
}

// PolicyImage allows the versions of one image.
type PolicyImage struct {
	Name    string          `yaml:"name"`              // as in the manifest
	Minimum string          `yaml:"minimum,omitempty"` // oldest version; any if it is left out
	Denied  []PolicyVersion `yaml:"denied,omitempty"`  // versions that may not run
	// Manifests are the SHA-256 digests of the manifests that are meant. Empty:
	// every signed manifest of that name.
	Manifests []string `yaml:"manifests,omitempty"`
	Debug     bool     `yaml:"debug,omitempty"` // allow images that are marked debug
}

// PolicyVersion denies one version.
type PolicyVersion struct {
	Version string `yaml:"version"`          // of the image, or of the firmware as SMBIOS type 0 shows it
	Reason  string `yaml:"reason,omitempty"` // for people
}

// PolicySecureBoot is what PCR 7 may hold beside the image's own keys.
type PolicySecureBoot struct {
	DBX PolicyDBX `yaml:"dbx,omitempty"` // what may be revoked
}

// PolicyDBX says which dbx is allowed. Exactly one field is set.
type PolicyDBX struct {
	Any     bool     `yaml:"any,omitempty"`     // any, also an empty one
	Digests []string `yaml:"digests,omitempty"` // SHA-256 digests of the event that measures dbx
	// Superset is a file beside the policy with a dbx of which no entry may be
	// missing: EFI signature lists, or an update as makers publish it.
	Superset PolicyFile `yaml:"superset,omitempty"`
}

// PolicyFile is a file beside the policy. The digest binds it to the signature of
// the policy.
type PolicyFile struct {
	File   string `yaml:"file,omitempty"`   // path below the policy's directory
	SHA256 string `yaml:"sha256,omitempty"` // of its content
}

// PolicyTPM is which TPMs are believed.
type PolicyTPM struct {
	// Allowed are the classes of TPM that may be given secrets: hardware,
	// firmware, virtual, software. Empty: those of the service's configuration.
	Allowed  []string            `yaml:"allowed,omitempty"`
	Firmware []PolicyTPMFirmware `yaml:"firmware,omitempty"` // minimum versions of the TPMs' own firmware
	// ProveBanks has machines prove which PCR banks are active: ask, which refuses
	// none, or require, which takes only those that do; true is require. Left out,
	// or false, they are not asked.
	ProveBanks BankProof `yaml:"proveBanks,omitempty"`
	// BankExemptions are TPMs that need not give the proof that is required.
	BankExemptions []PolicyTPMRule `yaml:"bankExemptions,omitempty"`
	// WithoutSHA256 are TPMs that may have SHA-256 off, if they prove it, and are
	// then appraised by SHA-384, where the configuration does not say so of all.
	WithoutSHA256 []PolicyTPMRule `yaml:"withoutSHA256,omitempty"`
}

// BankProof is what a policy wants of the proof of the active PCR banks. A file may
// say true for BankProofRequire and false for nothing.
type BankProof string

// What a policy may want.
const (
	BankProofNone    BankProof = ""
	BankProofAsk     BankProof = "ask"
	BankProofRequire BankProof = "require"
)

// PolicyTPMRule names the TPMs of one maker, or one machine. Either is proven: by
// the endorsement certificate, or by the endorsement key.
type PolicyTPMRule struct {
	Vendor string `yaml:"vendor,omitempty"` // manufacturer in the endorsement certificate, which its root must be there to vouch for
	Model  string `yaml:"model,omitempty"`  // model in the endorsement certificate; any if it is left out
	// Below restricts it to TPMs whose own firmware is older than this version, as
	// under firmware.
	Below   string `yaml:"below,omitempty"`
	Machine string `yaml:"machine,omitempty"` // id of one machine, instead of a vendor
	Reason  string `yaml:"reason"`            // for people
}

// PolicyTPMFirmware is the minimum for the TPMs of one maker.
type PolicyTPMFirmware struct {
	Vendor  string `yaml:"vendor"`           // of the TCG Vendor ID Registry: IFX, STM, NTC, INTC, AMD
	Minimum string `yaml:"minimum"`          // firmwareVersion that the TPM signs: four numbers of 16 bits, "7.85.4555.0", or hexadecimal, "0x0007005511cb0000"
	Reason  string `yaml:"reason,omitempty"` // for people
}

// PolicyFirmware is what firmware may run, of what the catalogue knows.
type PolicyFirmware struct {
	// Release are the verdicts with which secrets are released: measured,
	// cross-checked, claimed only. Empty: the first two.
	Release []string      `yaml:"release,omitempty"`
	Models  []PolicyModel `yaml:"models,omitempty"` // all that match a machine count
}

// PolicyModel is what is asked of one model of machine.
type PolicyModel struct {
	Vendor  string `yaml:"vendor,omitempty"`  // SMBIOS type 1 manufacturer; any if it is left out
	Product string `yaml:"product,omitempty"` // SMBIOS type 1 product name; any if it is left out
	// Pattern finds what is compared of a version: a regular expression with one
	// group. The whole version if it is left out.
	Pattern   string          `yaml:"pattern,omitempty"`
	Minimum   []PolicyMinimum `yaml:"minimum,omitempty"`   // all that are in force count
	Denied    []PolicyVersion `yaml:"denied,omitempty"`    // versions that may not run
	NotBefore string          `yaml:"notBefore,omitempty"` // firmware released before this day, as the catalogue says, may not run
	// Components are measured events that are refused unless they are named
	// here: option ROMs and what belongs to them.
	Components []PolicyComponent `yaml:"components,omitempty"`
	// Configuration is any, or listed: each event of PCR 1 must then be one of
	// the components.
	Configuration string `yaml:"configuration,omitempty"`
}

// PolicyMinimum is the oldest firmware version that may run.
type PolicyMinimum struct {
	Version string `yaml:"version"`          // as SMBIOS type 0 shows it, or the part of it that the pattern finds
	From    string `yaml:"from,omitempty"`   // day from which it counts; at once if it is left out
	Reason  string `yaml:"reason,omitempty"` // for people
}

// PolicyComponent is one event that is allowed.
type PolicyComponent struct {
	PCR    int    `yaml:"pcr"`    // 1, 2, 3, 5, 6, or 7 for the certificate that verified an option ROM
	SHA256 string `yaml:"sha256"` // digest of the event, as sealift attest log shows it
	// SHA384 is its digest in the SHA-384 bank, for machines that are appraised by it.
	// Optional; without it such a machine is refused, unless the event's data is what
	// was measured.
	SHA384 string `yaml:"sha384,omitempty"`
	Name   string `yaml:"name,omitempty"` // for people
}
