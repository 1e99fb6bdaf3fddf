//! Data structures as C headers of other projects declare them: names and sizes of fields in order. Offsets are sums,
//! so no offset of this room is used twice.

/// Fields in order, and the size of the whole.
pub(super) struct Layout {
    len: usize,
    fields: &'static [(&'static str, usize)],
}

impl Layout {
    /// A structure of zeroes but for these fields.
    pub(super) fn bytes(&self, values: &[(&str, &[u8])]) -> Vec<u8> {
        assert_eq!(self.fields.iter().map(|f| f.1).sum::<usize>(), self.len, "the fields fill the structure");
        let mut out = Vec::new();
        for &(name, size) in self.fields {
            let mut field = vec![0; size];
            if let Some((_, value)) = values.iter().find(|(n, _)| *n == name) {
                assert!(value.len() <= size, "{name}");
                field[..value.len()].copy_from_slice(value);
            }
            out.extend(field);
        }
        for (name, _) in values {
            assert!(self.fields.iter().any(|f| f.0 == *name), "no field {name}");
        }
        out
    }
}

pub(super) const CONTROLLER: Layout = Layout {
    len: 4096,
    fields: &[
        ("vid", 2), ("ssvid", 2), ("sn", 20), ("mn", 40), ("fr", 8), ("rab", 1), ("ieee", 3), ("cmic", 1),
        ("mdts", 1), ("cntlid", 2), ("ver", 4), ("rtd3r", 4), ("rtd3e", 4), ("oaes", 4), ("ctratt", 4),
        ("rrls", 2), ("bpcap", 1), ("", 1), ("nssl", 4), ("", 2), ("plsi", 1), ("cntrltype", 1), ("fguid", 16),
        ("crdt1", 2), ("crdt2", 2), ("crdt3", 2), ("crcap", 1), ("ciu", 1), ("cirn", 8), ("", 96), ("", 13),
        ("nvmsr", 1), ("vwci", 1), ("mec", 1), ("oacs", 2), ("acl", 1), ("aerl", 1), ("frmw", 1), ("lpa", 1),
        ("elpe", 1), ("npss", 1), ("avscc", 1), ("apsta", 1), ("wctemp", 2), ("cctemp", 2), ("mtfa", 2),
        ("hmpre", 4), ("hmmin", 4), ("tnvmcap", 16), ("unvmcap", 16), ("rpmbs", 4), ("edstt", 2), ("dsto", 1),
        ("fwug", 1), ("kas", 2), ("hctma", 2), ("mntmt", 2), ("mxtmt", 2), ("sanicap", 4), ("hmminds", 4),
        ("hmmaxd", 2), ("nsetidmax", 2), ("endgidmax", 2), ("anatt", 1), ("anacap", 1), ("anagrpmax", 4),
        ("nanagrpid", 4), ("pels", 4), ("domainid", 2), ("", 10), ("megcap", 16), ("", 2), ("cqt", 2), ("", 124), ("sqes", 1),
        ("cqes", 1), ("maxcmd", 2), ("nn", 4), ("oncs", 2), ("fuses", 2), ("fna", 1), ("vwc", 1), ("awun", 2),
        ("awupf", 2), ("icsvscc", 1), ("nwpc", 1), ("acwu", 2), ("ocfs", 2), ("sgls", 4), ("mnan", 4),
        ("maxdna", 16), ("maxcna", 4), ("", 204), ("subnqn", 256), ("", 768), ("ioccsz", 4), ("iorcsz", 4),
        ("icdoff", 2), ("fcatt", 1), ("msdbd", 1), ("ofcs", 2), ("dctype", 1), ("", 241), ("psd", 1024),
        ("vs", 1024),
    ],
};

pub(super) const NAMESPACE: Layout = Layout {
    len: 4096,
    fields: &[
        ("nsze", 8), ("ncap", 8), ("nuse", 8), ("nsfeat", 1), ("nlbaf", 1), ("flbas", 1), ("mc", 1), ("dpc", 1),
        ("dps", 1), ("nmic", 1), ("rescap", 1), ("fpi", 1), ("dlfeat", 1), ("nawun", 2), ("nawupf", 2),
        ("nacwu", 2), ("nabsn", 2), ("nabo", 2), ("nabspf", 2), ("noiob", 2), ("nvmcap", 16), ("npwg", 2),
        ("npwa", 2), ("npdg", 2), ("npda", 2), ("nows", 2), ("mssrl", 2), ("mcl", 4), ("msrc", 1), ("", 11),
        ("anagrpid", 4), ("", 3), ("nsattr", 1), ("nvmsetid", 2), ("endgid", 2), ("nguid", 16), ("eui64", 8),
        ("lbaf", 256), ("vs", 3712),
    ],
};

pub(super) const NVM_CONTROLLER: Layout = Layout {
    len: 4096,
    fields: &[("vsl", 1), ("wzsl", 1), ("wusl", 1), ("dmrl", 1), ("dmrsl", 4), ("dmsl", 8), ("", 4080)],
};

pub(super) const NVM_NAMESPACE: Layout =
    Layout { len: 4096, fields: &[("lbstm", 8), ("pic", 1), ("", 3), ("elbaf", 256), ("", 3828)] };

pub(super) const INDEPENDENT_NAMESPACE: Layout = Layout {
    len: 4096,
    fields: &[
        ("nsfeat", 1), ("nmic", 1), ("rescap", 1), ("fpi", 1), ("anagrpid", 4), ("nsattr", 1), ("", 1),
        ("nvmsetid", 2), ("endgid", 2), ("nstat", 1), ("kpios", 1), ("maxkt", 2), ("", 2), ("rgrpid", 4),
        ("", 4072),
    ],
};

pub(super) const ERROR_ENTRY: Layout = Layout {
    len: 64,
    fields: &[
        ("error_count", 8), ("sqid", 2), ("cmdid", 2), ("status_field", 2), ("parm_error_location", 2),
        ("lba", 8), ("nsid", 4), ("vs", 1), ("trtype", 1), ("csi", 1), ("opcode", 1), ("cs", 8),
        ("trtype_spec_info", 2), ("", 21), ("log_page_version", 1),
    ],
};

pub(super) const SMART: Layout = Layout {
    len: 512,
    fields: &[
        ("critical_warning", 1), ("temperature", 2), ("avail_spare", 1), ("spare_thresh", 1),
        ("percent_used", 1), ("endu_grp_crit_warn_sumry", 1), ("", 25), ("data_units_read", 16),
        ("data_units_written", 16), ("host_reads", 16), ("host_writes", 16), ("ctrl_busy_time", 16),
        ("power_cycles", 16), ("power_on_hours", 16), ("unsafe_shutdowns", 16), ("media_errors", 16),
        ("num_err_log_entries", 16), ("warning_temp_time", 4), ("critical_comp_time", 4), ("temp_sensor", 16),
        ("", 296),
    ],
};

pub(super) const FIRMWARE_SLOTS: Layout =
    Layout { len: 512, fields: &[("afi", 1), ("", 7), ("frs1", 8), ("frs2", 8), ("frs3_7", 40), ("", 448)] };

pub(super) const EFFECTS: Layout =
    Layout { len: 4096, fields: &[("acs", 1024), ("iocs_00_18", 100), ("iocs_19", 4), ("iocs", 920), ("", 2048)] };

pub(super) const HOST_BEHAVIOR: Layout = Layout {
    len: 512,
    fields: &[("acre", 1), ("etdas", 1), ("lbafee", 1), ("hdisns", 1), ("cdfe", 2), ("", 506)],
};

pub(super) const DISCOVERY_HEADER: Layout =
    Layout { len: 1024, fields: &[("genctr", 8), ("numrec", 8), ("recfmt", 2), ("", 1006)] };

pub(super) const DISCOVERY_ENTRY: Layout = Layout {
    len: 1024,
    fields: &[
        ("trtype", 1), ("adrfam", 1), ("subtype", 1), ("treq", 1), ("portid", 2), ("cntlid", 2), ("asqsz", 2),
        ("eflags", 2), ("", 20), ("trsvcid", 32), ("", 192), ("subnqn", 256), ("traddr", 256), ("sectype", 1),
        ("", 255),
    ],
};

pub(super) const CONNECT_DATA: Layout = Layout {
    len: 1024,
    fields: &[("hostid", 16), ("cntlid", 2), ("", 238), ("subsysnqn", 256), ("hostnqn", 256), ("", 256)],
};

/// The front of every submission queue entry is the same; the rest follows.
pub(super) const RW: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("nsid", 4), ("cdw2", 8), ("metadata", 8), ("dptr", 16),
        ("slba", 8), ("length", 2), ("control", 2), ("dsmgmt", 4), ("reftag", 4), ("apptag", 2), ("appmask", 2),
    ],
};

pub(super) const DSM: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("nsid", 4), ("cdw2", 8), ("metadata", 8), ("dptr", 16),
        ("nr", 4), ("attributes", 4), ("", 16),
    ],
};

pub(super) const CONNECT: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("fctype", 1), ("", 19), ("dptr", 16), ("recfmt", 2),
        ("qid", 2), ("sqsize", 2), ("cattr", 1), ("", 1), ("kato", 4), ("", 12),
    ],
};

pub(super) const PROPERTY: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("fctype", 1), ("", 35), ("attrib", 1), ("", 3),
        ("offset", 4), ("value", 8), ("", 8),
    ],
};

pub(super) const AUTHENTICATION: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("fctype", 1), ("", 19), ("dptr", 16), ("", 1),
        ("spsp0", 1), ("spsp1", 1), ("secp", 1), ("al_tl", 4), ("", 16),
    ],
};

pub(super) const LOG_PAGE: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("nsid", 4), ("", 16), ("dptr", 16), ("lid", 1),
        ("lsp", 1), ("numdl", 2), ("numdu", 2), ("lsi", 2), ("lpol", 4), ("lpou", 4), ("uuid", 1), ("", 1),
        ("ot", 1), ("csi", 1), ("", 4),
    ],
};

pub(super) const IDENTIFY: Layout = Layout {
    len: 64,
    fields: &[
        ("opcode", 1), ("flags", 1), ("command_id", 2), ("nsid", 4), ("", 16), ("dptr", 16), ("cns", 1), ("", 1),
        ("ctrlid", 2), ("cnssid", 2), ("", 1), ("csi", 1), ("", 16),
    ],
};

/// Source range entries of formats 0h and 2h.
pub(super) const RANGE_32: Layout = Layout {
    len: 32,
    fields: &[
        ("snsid", 4), ("", 4), ("slba", 8), ("nlb", 2), ("cetype", 1), ("", 1), ("cev", 2), ("sopt", 2),
        ("elbt", 4), ("elbat", 2), ("elbatm", 2),
    ],
};

/// Source range entries of formats 1h and 3h.
pub(super) const RANGE_40: Layout = Layout {
    len: 40,
    fields: &[
        ("snsid", 4), ("", 4), ("slba", 8), ("nlb", 2), ("cetype", 1), ("", 1), ("cev", 2), ("sopt", 2), ("", 2),
        ("elbt", 10), ("elbat", 2), ("elbatm", 2),
    ],
};
