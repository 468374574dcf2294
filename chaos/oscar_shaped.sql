-- What a clinic's database looks like to replication, in small: written for this project, no line of OSCAR's own.
-- It has OSCAR's habits on purpose: mixed-case names, utf8mb3, zero dates, a LONGTEXT, ENUM, BIT and TIMESTAMP, tables
-- without a primary key, one MyISAM table, and numbers that the application makes with MAX(id)+1.
-- `ha_token` names the write that made a row; `ha_touched` the number of the clinic's last write that changed it.

CREATE TABLE IF NOT EXISTS demographic (
  demographic_no INT NOT NULL AUTO_INCREMENT,
  last_name VARCHAR(30) NOT NULL,
  first_name VARCHAR(30) NOT NULL,
  hin VARCHAR(20) DEFAULT NULL,
  sex ENUM('F','M','X','U') NOT NULL DEFAULT 'U',
  date_of_birth DATE NOT NULL DEFAULT '0000-00-00',
  end_date DATE NOT NULL DEFAULT '0000-00-00',
  phone VARCHAR(20) DEFAULT '',
  patient_status VARCHAR(20) DEFAULT 'AC',
  lastUpdateDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  ha_token VARCHAR(80) NOT NULL,
  ha_touched BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (demographic_no),
  KEY name (last_name, first_name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

CREATE TABLE IF NOT EXISTS appointment (
  appointment_no INT NOT NULL AUTO_INCREMENT,
  demographic_no INT NOT NULL,
  provider_no VARCHAR(6) NOT NULL,
  appointment_date DATE NOT NULL DEFAULT '0000-00-00',
  start_time TIME NOT NULL DEFAULT '00:00:00',
  status CHAR(2) NOT NULL DEFAULT 't',
  reason VARCHAR(80) DEFAULT '',
  createdatetime DATETIME NOT NULL DEFAULT '0000-00-00 00:00:00',
  ha_token VARCHAR(80) NOT NULL,
  ha_touched BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (appointment_no),
  KEY day (appointment_date, provider_no)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

CREATE TABLE IF NOT EXISTS chartNote (
  note_id INT NOT NULL AUTO_INCREMENT,
  demographic_no INT NOT NULL,
  uuid CHAR(36) NOT NULL DEFAULT '',
  note LONGTEXT NOT NULL,
  signed BIT(1) NOT NULL DEFAULT b'0',
  update_date TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  ha_token VARCHAR(80) NOT NULL,
  PRIMARY KEY (note_id),
  KEY demographic_no (demographic_no)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

-- No primary key: replication finds such rows by scanning.
CREATE TABLE IF NOT EXISTS chartNoteIssue (
  note_id INT NOT NULL,
  issue_code VARCHAR(10) NOT NULL,
  ha_token VARCHAR(80) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

CREATE TABLE IF NOT EXISTS Prescription (
  script_no INT NOT NULL AUTO_INCREMENT,
  demographic_no INT NOT NULL,
  drug VARCHAR(60) NOT NULL,
  dosage FLOAT DEFAULT NULL,
  quantity VARCHAR(20) DEFAULT '',
  rx_date DATE NOT NULL DEFAULT '0000-00-00',
  archived TINYINT(1) NOT NULL DEFAULT 0,
  special BLOB,
  ha_token VARCHAR(80) NOT NULL,
  PRIMARY KEY (script_no)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

-- The application makes `id` with MAX(id)+1, for each clinic.
CREATE TABLE IF NOT EXISTS billingClaim (
  clinic VARCHAR(40) NOT NULL,
  id INT NOT NULL,
  demographic_no INT NOT NULL,
  service_code VARCHAR(10) NOT NULL,
  fee DECIMAL(10,2) NOT NULL DEFAULT 0.00,
  billing_date DATE NOT NULL DEFAULT '0000-00-00',
  ha_token VARCHAR(80) NOT NULL,
  PRIMARY KEY (clinic, id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;

-- Not transactional: a crash can leave here what the binlog never had, and no rollback takes it back.
CREATE TABLE IF NOT EXISTS labInbox (
  id INT NOT NULL AUTO_INCREMENT,
  demographic_no INT NOT NULL,
  lab VARCHAR(20) NOT NULL,
  result VARCHAR(120) NOT NULL,
  ha_token VARCHAR(80) NOT NULL,
  PRIMARY KEY (id)
) ENGINE=MyISAM DEFAULT CHARSET=latin1;

-- The audit trail: no primary key, a line for every action.
CREATE TABLE IF NOT EXISTS log (
  dateTime DATETIME NOT NULL DEFAULT '0000-00-00 00:00:00',
  provider_no VARCHAR(10) DEFAULT NULL,
  action VARCHAR(40) NOT NULL,
  content VARCHAR(80) DEFAULT NULL,
  contentId VARCHAR(80) DEFAULT NULL,
  ip VARCHAR(30) DEFAULT NULL,
  data TEXT,
  ha_token VARCHAR(80) NOT NULL,
  KEY datetime (dateTime)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;
