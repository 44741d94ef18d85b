package profiles

// NodeConfigPath is where the agent finds its NodeConfig in the root file system.
const NodeConfigPath = "/usr/lib/sealift/node.json"

// NodeConfig is what a distro needs the agent to do once the root file system
// is mounted. It is under dm-verity with everything else there, and holds
// nothing of one machine.
type NodeConfig struct {
	Image   string `json:"image"`   // "name version"
	Distro  string `json:"distro"`  // of Kubernetes
	Version string `json:"version"` // of Kubernetes

	// Sysctls are written before the first service starts: name with dots to value.
	Sysctls map[string]string `json:"sysctls"`
	// Dirs are made, mode 0755, before the first service starts. All are below
	// /var or /run.
	Dirs []string `json:"dirs"`
	// Volatile are directories below /var that are empty at the start of every
	// boot: what programs keep there describes things that a reboot ends, and
	// after a power cut it may be half written. The agent mounts a tmpfs there.
	Volatile []string `json:"volatile,omitempty"`
	// Prefetch are programs that are read into memory while the machine
	// attests, in the order in which they will be needed. Absolute paths.
	Prefetch []string `json:"prefetch,omitempty"`
	// Services are started in this order.
	Services []Service `json:"services"`
	// Import is the command that imports one archive of ImagesDir into the
	// container runtime; the archive's path is appended.
	Import []string `json:"import"`
	// ImagesDir is below /var: where a distro that imports archives by itself
	// looks for them. The agent lets the archives of the image appear there.
	ImagesDir string    `json:"imagesDir,omitempty"`
	Join      JoinPaths `json:"join"`
}

// Service is one program that the agent starts, in a cgroup of its own, and
// starts again when it ends.
type Service struct {
	Name string `json:"name" yaml:"name"`
	// Args is the command line; Args[0] is the program's path. In every
	// argument ${NODE_IP} and ${NODE_NAME} are replaced by the node's own, and
	// ${JOIN_SERVER} and ${JOIN_HOST} by the cluster's: JoinPaths.Server.
	Args []string `json:"args" yaml:"args"`
	Env  []string `json:"env,omitempty" yaml:"env"` // NAME=value; nothing else is passed on
	// Socket is a Unix socket that must accept connections before the next
	// service is started. Optional.
	Socket string `json:"socket,omitempty" yaml:"socket"`
}

// JoinPaths say where the agent leaves what the attestation service released.
type JoinPaths struct {
	CA         string `json:"ca" yaml:"ca"`                 // PEM of the cluster's CA; kept on the state partition
	Bootstrap  string `json:"bootstrap" yaml:"bootstrap"`   // the bootstrap token, in Format; below /run
	Kubeconfig string `json:"kubeconfig" yaml:"kubeconfig"` // written by the kubelet: its presence means joined
	// Format is the form of Bootstrap. Empty: JoinKubeconfig.
	Format string `json:"format,omitempty" yaml:"format"`
	// Server is where the address of the cluster is kept on the state partition,
	// for a distro that must be told at every start. Optional.
	Server string `json:"server,omitempty" yaml:"server"`
}

// Forms of JoinPaths.Bootstrap.
const (
	// JoinKubeconfig is a kubeconfig with the token, for a kubelet. It is
	// deleted once the node has joined.
	JoinKubeconfig = ""
	// JoinK3s is a secure token of k3s and rke2: K10, the SHA-256 of the
	// cluster's CA in hex, "::" and the token. After the join it stays, with no
	// secret in it: these distros check the CA against it at every start.
	JoinK3s = "k3s"
	// JoinK0s is a token of k0s: a kubeconfig with the user kubelet-bootstrap,
	// gzip, base64. After the join it stays as an empty file.
	JoinK0s = "k0s"
)

// JoinFormats returns all of them.
func JoinFormats() []string { return []string{JoinKubeconfig, JoinK3s, JoinK0s} }

// Variables of Service.Args.
const (
	VarNodeIP     = "${NODE_IP}"
	VarNodeName   = "${NODE_NAME}"
	VarJoinServer = "${JOIN_SERVER}" // https://host:port of the cluster, as the attestation service has it
	VarJoinHost   = "${JOIN_HOST}"   // its host; an IPv6 address in brackets
)
